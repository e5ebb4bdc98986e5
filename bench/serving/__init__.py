"""Times of decode steps and prefill in sglang's model runner: stock against the fork.

They need a GPU and the packages that ``python -m tests.serving.support.stage install`` puts in place.
"""
