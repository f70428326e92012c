"""Exact decoding of long clips and encoding of large pictures in little memory.

    stream.py      a clip, stage by stage, in strips of pixels with all their frames
    frames.py      layers inside a frame, in bands of rows (bands.py); blocks.py: residual blocks and attention
    convolving.py  a convolution inside a band; norms.py: group norms from moments
    places.py      where activations stay
    plan.py        how much memory that takes, counted before it runs
    run.py         a plan carried out, or a leaner one where memory runs out; rescue.py: overflown frames in float32
    pictures.py    pictures through the encoder

The folder is named after the decoder, which came first; the encoder is the simpler case of the same machinery, with
nothing across frames.
"""
