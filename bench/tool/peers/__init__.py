"""``tool rebase`` against quilt and StGit on the same series and the same conflicts.

``python -m bench.tool.peers.run`` writes ``docs/peers.md``.
"""
