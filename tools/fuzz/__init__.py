"""A fuzzer for everything that reads untrusted input: checkpoints, recipes, pictures, clips, latents, flags.

    python -m tools.fuzz                               # every target, as run by `make fuzz`
    python -m tools.fuzz recipe --seed 4711 --cases 1  # repeat one case

A case is determined by its target and seed alone. It is mutated from a valid input and given to the product, which must
accept it or refuse it with a one-line message (see `guard` for further rules). Read `mutate`, `targets`, `guard`,
`worker` in this order; nodes are fuzzed in the real ComfyUI, by tests/nodes/test_fuzz_nodes.py.
"""
