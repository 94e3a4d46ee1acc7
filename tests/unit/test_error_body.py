# ruff: noqa: E501 - bodies stay on one line, as servers send them
"""Errors as servers describe them: each shape of body, each place of the reason.

The names in brackets are public reports about comparable tools.
"""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from persona_lab.clients.error_body import read_error_body
from persona_lab.clients.error_mapping import map_error
from persona_lab.clients.event_stream import ErrorEvent
from persona_lab.errors import (
    BadKey,
    BadRequest,
    ContextTooLong,
    InvalidResponse,
    ModelNotFound,
    Overloaded,
    PersonaLabError,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Refused,
    WrongAddress,
)

NGINX = "<html>\r\n<head><title>{0}</title></head><body><h1>{0}</h1><hr>nginx</html>"
GOOGLE_KEY = {
    "code": 400,
    "message": "API key not valid. Please pass a valid API key.",
    "status": "INVALID_ARGUMENT",
    "details": [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"},
        {
            "@type": "type.googleapis.com/google.rpc.LocalizedMessage",
            "message": "API key not valid.",
        },
    ],
}
VLLM_LONG = (
    "This model's maximum context length is 4096 tokens. However, you requested 5210 tokens (4710 in "
    "the messages, 500 in the completion). Please reduce the length of the messages or completion."
)


def mapped(status: int, body: Any) -> PersonaLabError:
    """Map the error of a response, as the SDK raises it."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    http = httpx2.Client(
        transport=httpx2.MockTransport(lambda _: httpx2.Response(status, content=content))
    )
    sdk = openai.OpenAI(api_key="k", base_url="http://host/v1", http_client=http, max_retries=0)
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.chat.completions.create(model="m", messages=[])
    return map_error(caught.value, provider="openai", model="m")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        # keys [ollama#2474, opencode PR17763]
        (400, [{"error": GOOGLE_KEY}], BadKey),
        (400, {"error": GOOGLE_KEY}, BadKey),
        (400, {"error": "API key not valid"}, BadKey),
        (400, {"error": {"message": "Incorrect API key provided: xx", "code": "x"}}, BadKey),
        (400, {"code": "InvalidApiKey", "message": "Invalid API-key provided.", "request_id": "1"}, BadKey),
        (422, {"detail": "invalid x-api-key"}, BadKey),
        (500, {"error": {"message": "No auth credentials found"}}, BadKey),
        (401, {"error": "x"}, BadKey),
        (401, "", BadKey),
        # accounts
        (400, {"type": "error", "error": {"type": "invalid_request_error",
               "message": "Your credit balance is too low to access the Anthropic API."}}, QuotaExceeded),
        (403, {"error": {"message": "Insufficient balance", "code": "30001"}}, QuotaExceeded),
        (402, {"error": {"message": "This request requires more credits, or fewer max_tokens."}}, QuotaExceeded),
        (429, {"error": {"code": "1113", "message": "账户余额不足,请充值"}}, QuotaExceeded),
        (429, {"error": {"type": "exceeded_current_quota_error", "message": "x"}}, QuotaExceeded),
        (400, {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing"}, QuotaExceeded),
        (429, {"error": {"message": "You exceeded your current quota, please check your plan and billing details.", "code": None}}, QuotaExceeded),
        # limits of rate
        (429, [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota, please check your plan and billing details."}}], RateLimited),
        (400, {"__type": "com.amazon.coral#ThrottlingException", "message": "x"}, RateLimited),
        (403, {"message": "API rate limit exceeded"}, RateLimited),
        # length
        (400, {"object": "error", "message": VLLM_LONG, "type": "BadRequestError", "param": None, "code": 400}, ContextTooLong),
        (400, {"error": {"message": VLLM_LONG, "type": "BadRequestError", "code": 400}}, ContextTooLong),
        (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 208310 tokens > 200000 maximum"}}, ContextTooLong),
        (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000"}}, ContextTooLong),
        (500, {"error": {"code": 500, "message": "the request exceeds the available context size. try increasing the context size", "type": "server_error"}}, ContextTooLong),
        (400, {"error": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens"}, ContextTooLong),
        (400, {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "The input token count (40000) exceeds the maximum number of tokens allowed (32768)."}}, ContextTooLong),
        (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 100 `max_new_tokens`"}, ContextTooLong),
        (400, {"message": "Requested tokens (4500) exceed context window of 4096"}, ContextTooLong),
        # addresses
        (404, "404 page not found", WrongAddress),
        (404, "404 page not found\n", WrongAddress),
        (404, {"detail": "Not Found"}, WrongAddress),
        (404, NGINX.format("404 Not Found"), WrongAddress),
        (404, "<!DOCTYPE html><pre>Cannot POST /chat/completions</pre>", WrongAddress),
        (404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, WrongAddress),
        (404, {"error": {"message": "Invalid URL (POST /v1/v1/chat/completions)", "type": "invalid_request_error", "param": None, "code": None}}, WrongAddress),
        (405, {"detail": "Method Not Allowed"}, WrongAddress),
        (405, NGINX.format("405 Not Allowed"), WrongAddress),
        (404, {"message": "no Route matched with those values"}, WrongAddress),
        # models
        (404, {"error": {"message": 'model "qwen3:8b" not found, try pulling it first', "type": "api_error"}}, ModelNotFound),
        (404, {"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}, ModelNotFound),
        (400, {"error": {"message": "x/y is not a valid model ID", "code": 400}}, ModelNotFound),
        (404, {"error": {"message": "No endpoints found for x/y.", "code": 404}}, ModelNotFound),
        (404, {"type": "error", "error": {"type": "not_found_error", "message": "model: claude-9"}}, ModelNotFound),
        (404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}}, ModelNotFound),
        (404, {}, ModelNotFound),
        (404, "", ModelNotFound),
        # moderation
        (403, {"error": {"message": "openai/gpt-5 requires moderation on OpenAI. Your input was flagged", "code": 403, "metadata": {"reasons": ["violence"], "flagged_input": "x"}}}, Refused),
        (400, {"code": "data_inspection_failed", "message": "Input data may contain inappropriate content."}, Refused),
        (400, {"error": {"code": None, "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."}}, Refused),
        (403, {"error": {"message": "Project has no access", "code": "model_not_found"}}, ModelNotFound),
        (403, "<html><title>Attention Required! | Cloudflare</title></html>", ProviderError),
        # capacity
        (499, {"error": "client closed request"}, Overloaded),
        (499, "", Overloaded),
        (409, {}, Overloaded),
        (425, "", Overloaded),
        (520, "<html>", Overloaded),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, Overloaded),
        (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, Overloaded),
        (503, NGINX.format("503 Service Temporarily Unavailable"), Overloaded),
        (502, "", Overloaded),
        # JSON inside text
        (400, {"error": {"message": 'litellm.BadRequestError: {"error": {"message": "x", "code": "context_length_exceeded"}}'}}, ContextTooLong),
        (500, {"error": {"message": json.dumps([{"error": GOOGLE_KEY}])}}, BadKey),
        (400, {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": '{"message": "prompt is too long"}'}}}, ContextTooLong),
        # nothing known
        (400, {"error": {"message": "no"}}, BadRequest),
        (400, [], BadRequest),
        (400, "null", BadRequest),
        (400, {"errors": [{"message": "something"}]}, BadRequest),
    ],
)  # fmt: skip
def test_error_is_told_by_what_the_body_says(
    status: int, body: Any, kind: type[ProviderError]
) -> None:
    assert type(mapped(status, body)) is kind


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"code": 429, "message": "x"}}, RateLimited),
        ({"error": {"code": "429", "message": "x"}}, RateLimited),
        ({"error": {"message": "Insufficient credits", "code": 402}}, QuotaExceeded),
        ({"error": "Unexpected endpoint or method. (POST /chat/completions)"}, WrongAddress),
        ({"error": {"message": VLLM_LONG}}, ContextTooLong),
        ("overloaded", Overloaded),
    ],
)
def test_error_in_a_stream_is_told_by_what_it_says(body: object, kind: type[ProviderError]) -> None:
    assert type(map_error(ErrorEvent(body), provider="openai", model="m")) is kind


def test_words_of_an_answer_are_no_error() -> None:
    assert not isinstance(map_error(ErrorEvent({"error": {}}), provider="openai"), InvalidResponse)


@pytest.mark.parametrize(
    "body",
    [None, 7, True, "", "{", "[" * 5000, {"error": None}, {"code": True}, {"a": {"b": [{"c": []}]}},
     {"error": {"code": float("inf")}}, {"detail": [{"loc": [], "msg": None}]}],
)  # fmt: skip
def test_odd_body_says_nothing(body: object) -> None:
    found = read_error_body(body)
    assert found.status is None
    assert not any(found.options)


def test_deep_body_is_read_in_bounded_time() -> None:
    body: Any = "x"
    for _ in range(500):
        body = {"error": [body, body]}
    assert read_error_body(body).names == ()
