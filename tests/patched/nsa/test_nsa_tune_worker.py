"""The tests of the worker of ``tool tune``, on this era."""

from __future__ import annotations

from tune_worker import sm_89 as sm_89
from tune_worker import (
    test_a_configuration_is_compiled_as_launched as test_a_configuration_is_compiled_as_launched,
)
from tune_worker import (
    test_a_file_of_the_second_gemm_is_refused as test_a_file_of_the_second_gemm_is_refused,
)
from tune_worker import (
    test_a_folder_of_ones_own_leaves_the_path as test_a_folder_of_ones_own_leaves_the_path,
)
from tune_worker import (
    test_a_gemm_file_has_the_path_of_a_shipped_one as test_a_gemm_file_has_the_path_of_a_shipped_one,
)
from tune_worker import (
    test_an_moe_file_has_the_name_of_a_shipped_one as test_an_moe_file_has_the_name_of_a_shipped_one,
)
from tune_worker import (
    test_every_candidate_compiles_or_is_rejected as test_every_candidate_compiles_or_is_rejected,
)
from tune_worker import (
    test_the_default_is_the_row_of_a_shipped_file as test_the_default_is_the_row_of_a_shipped_file,
)
from tune_worker import (
    test_the_default_is_what_sglang_launches as test_the_default_is_what_sglang_launches,
)
from tune_worker import (
    test_the_references_are_the_products as test_the_references_are_the_products,
)
from tune_worker import (
    test_too_much_shared_memory_is_rejected as test_too_much_shared_memory_is_rejected,
)
from tune_worker import worker as worker
