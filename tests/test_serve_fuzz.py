"""schemathesis throws what /openapi.json allows, and what it does not, at the running server."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance, negative_data_rejection, response_schema_conformance, status_code_conformance,
)

from data.windows import WindowSettings
from answering.reader import Reader, ReaderSettings
from retrieval.collection import open_collection
from serving.documents import Documents
from tests.live_server import live
from tests.test_retrieval import fill



def not_broken(context, response, case):
    """No 5xx, but the 503 of a deadline that could not be met: 1e-103 seconds are allowed too."""
    if response.status_code == 503 and response.json() == {"error": "the answer was not ready in time"}:
        return None
    return not_a_server_error(context, response, case)


CHECKS = (
    not_broken, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection,
)
OPERATIONS, WITH_BODY = 18, 10
EXAMPLES = 5


@pytest.fixture(scope="module")
def url(tiny_folder, tmp_path_factory):
    reader = Reader.load(tiny_folder, settings=ReaderSettings(WindowSettings(57, 13)), device="cpu", precision="fp32")
    collection, _ = open_collection(fill(tmp_path_factory.mktemp("docs")), "bm25", None)
    with live(reader, documents=Documents(collection, 5), capacity=999, max_bytes=20_000) as (url, _):
        yield url


@pytest.fixture(scope="module")
def api(url):
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_breaks_the_server(api, mode):
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) == OPERATIONS
    tried = set()
    for operation in operations:

        @settings(
            max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def throw(case):
            tried.add((case.method, case.path))
            response = case.call()
            # what is too long is refused before it is parsed, whatever else is wrong with it
            too_long = response.status_code == 413
            case.validate_response(response, checks=[c for c in CHECKS if not (too_long and c is negative_data_rejection)])

        if mode is GenerationMode.POSITIVE or operation.body:  # without a body there is little to get wrong
            throw()
    expected = OPERATIONS if mode is GenerationMode.POSITIVE else WITH_BODY
    assert len(tried) == expected
