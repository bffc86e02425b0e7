"""Both directions, every size, text and bytea, in parallel workers: the tests of the native edition."""

# ruff: noqa: F401
from test_parallel import keys, session, test_errors_in_workers, test_every_function_runs_in_workers
from test_round_trip import (key, test_new_tokens_bear_the_time, test_python_list_is_sql_list, test_python_text_to_sql, test_python_to_sql,
                             test_sql_keys_are_pythons, test_sql_text_to_python, test_sql_to_python)
