"""Sets of findings that come with Retcon: each the claims of a published study, tested on another.

A study file names them (`findings: [batch-size]`). Nothing imports them but the registry.
"""
