"""Training: the synthetic video world, the stages and their evaluation. Imports `svd_core`, never the reverse."""
