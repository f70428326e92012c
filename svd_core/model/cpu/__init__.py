"""Routes that a CPU takes where torch's own is slow, each by capability, one probe and a kept choice, else torch's own.

`onednn`: linear layers in float32; `wide`: products of 16-bit numbers; `route`: which of them a layer takes; `conv`:
convolutions of few pixels and of doubled images; `geglu`: a feed-forward's first half; `probe`: what they share. Never
with gradients, in torch.compile, under autocast, or on tensors that somebody has given operations of their own.
"""
