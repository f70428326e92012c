"""The training half: the synthetic video world, and what measures a clip. Imports `svd_core`, never the reverse."""
