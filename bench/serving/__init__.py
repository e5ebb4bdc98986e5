"""Times of decode steps and prefill in sglang's model runner: stock against the fork.

They need a GPU and the packages that ``tests/gpu/stage.py install`` puts in place.
"""
