"""Exact decoding of long clips and encoding of large pictures in little memory: frames in bands (`frames.py`,
`blocks.py`), clips in strips (`stream.py`), pictures through the encoder (`pictures.py`), where activations stay
(`places.py`) and how much memory that takes (`plan.py`). The folder is named after the decoder, which came first; the
encoder is the simpler case of the same machinery, with nothing across frames."""
