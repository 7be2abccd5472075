"""The shapes that other libraries expect, on dise's solver: one module per library, imported by its own name.

    import dise.clients.sbi

A module imports its library when it is imported itself; `dise.clients.flow_matching` and `dise.clients.torchcfm` need
none.
"""
