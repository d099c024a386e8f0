"""The tests of the single server that a cluster does not run, each with its reason."""

from __future__ import annotations

NO_LOCAL_ADMIN = "a cluster starts only with an admin key, so it never trusts a caller for being local"

# A module, a function or one case below tests/ → the reason. A different answer is no reason.
EXCLUDED: dict[str, str] = {
    "integrations/test_rerank_clients.py::test_mixedbread_ai": (
        "the client sends no bearer key, which a server with keys refuses and one without keys ignores"
    ),
    "service/test_eval.py::test_an_endpoint_that_goes_away_ends_the_command_and_the_next_one_resumes": (
        "it kills the one process that serves; the proxy and the replicas of a cluster are others"
    ),
    "service/test_environments.py": "it reads every line of the log of one process; Ray's own lines are no JSON",
    "service/test_keys.py::test_without_keys_admin_answers_only_this_machine": NO_LOCAL_ADMIN,
    "service/test_lifecycle.py::test_a_file_that_is_ignored_is_named_once": "each process of a cluster logs it once",
    "service/test_memory_limits.py": "it limits the memory of the one process that serves",
    "service/test_score_files.py::test_an_endpoint_that_goes_away_ends_the_job_and_the_same_command_resumes": (
        "it kills the one process that serves; the proxy and the replicas of a cluster are others"
    ),
    "service/test_visibility.py::test_without_keys_only_local_callers_see_paths": NO_LOCAL_ADMIN,
}
