"""The tests of e4m3 codes as bytes, on this era."""

from __future__ import annotations

from e4m3_codes import (
    test_index_keys_are_stored_as_bytes as test_index_keys_are_stored_as_bytes,
)
from e4m3_codes import (
    test_keys_and_queries_are_quantised_by_the_bundle as test_keys_and_queries_are_quantised_by_the_bundle,
)
from e4m3_codes import (
    test_kv_rows_are_packed_by_the_bundle as test_kv_rows_are_packed_by_the_bundle,
)
from e4m3_codes import (
    test_other_gpus_keep_sglangs_kernels as test_other_gpus_keep_sglangs_kernels,
)
