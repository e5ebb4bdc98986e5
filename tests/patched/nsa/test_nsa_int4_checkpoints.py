"""The tests of 4-bit checkpoints, on this era."""

from __future__ import annotations

from int4_checkpoints import (
    test_the_option_keeps_the_shared_expert_apart as test_the_option_keeps_the_shared_expert_apart,
)
from int4_checkpoints import (
    test_the_shared_expert_of_an_int4_checkpoint as test_the_shared_expert_of_an_int4_checkpoint,
)
