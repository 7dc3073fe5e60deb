"""Networks written in PyTorch, as layers of a stage; needs the extra `asyncdni[torch]`.

`layer` runs an `nn.Module` behind the interface of a layer, `cut` divides one module into parts
that run one after the other, `loss` and `optimizer` compute as PyTorch does to the last bit. All of
`torch` is imported here alone, and only by a process that has a layer of this kind.
"""
