"""Routes for a CPU where torch's own are slow, each chosen by capability, one probe and a cached result, else torch's
own.

`onednn`: linear layers in float32; `wide`: products of 16-bit numbers; `route`: which of them a layer takes; `conv`:
convolutions of few pixels and of doubled images; `geglu`: a feed-forward's first half; `probe`: shared helpers. Never
used with gradients, in torch.compile, under autocast, or on tensor subclasses.
"""
