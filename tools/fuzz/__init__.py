"""A fuzzer over everything that reads what a stranger made: checkpoints, recipes, pictures, clips, latents, flags.

    python -m tools.fuzz                               # every target, as `make fuzz` runs it
    python -m tools.fuzz recipe --seed 4711 --cases 1  # one case again

A case is decided by its target and its seed alone. It is mutated from something whole and given to the product, which
must take it or refuse it in one line (see `guard` for what else it must not do). Read `mutate`, `targets`, `guard`,
`worker` in this order; nodes are fuzzed in the real ComfyUI, by tests/nodes/test_fuzz_nodes.py.
"""
