"""Teachers that write: a model on this machine, or one behind an OpenAI-compatible endpoint.

An endpoint is asked only when the user names one. Its key comes from the environment, goes to that host alone and is
never written anywhere.
"""

from __future__ import annotations

import ipaddress
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

from .artifact import OptimizedModel
from .errors import ConfigError, ModelError
from .runtime.generation import Reply
from .training import pad_before

__all__ = ["EndpointTeacher", "LocalTeacher", "Prompt", "Reply", "Teacher", "check_endpoint"]

Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a chat."""
_BATCH = 16
_TRIES = 5
_MOST_BYTES = 16 << 20
"""Of an answer; more is no chat completion."""
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)


class Teacher(Protocol):
    """Something that answers prompts."""

    name: str
    """For people and for telling teachers apart."""

    def answer(self, prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[Reply]:
        """One reply a prompt; tokens that an endpoint doesn't tell are -1."""
        ...


class LocalTeacher:
    """A language model in memory; prompts are answered in batches of like length.

    Args:
        source: The model.
        name: For people and for telling teachers apart.
        device: Where it runs.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        seed: Of the draws.
    """

    def __init__(self, source: OptimizedModel, name: str, *, device: str, temperature: float, seed: int) -> None:
        from .chat import prompt_file

        self.name = name
        self._source, self._temperature, self._seed = source, temperature, seed
        self._prompts = prompt_file(source.processor, source.spec)
        self._model = source.model.to(device).eval()

    def answer(self, prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[Reply]:
        """See `Teacher.answer`; a prompt that is too long loses its beginning."""
        import torch

        room = max(1, int(self._source.spec["max_length"]) - max_new_tokens)
        ids = [self._prompts.prompt(prompt)[-room:] for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        replies: dict[int, Reply] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            for start in range(0, len(order), _BATCH):
                chosen = order[start : start + _BATCH]
                written = self._write([ids[i] for i in chosen], max_new_tokens)
                for i, tokens in zip(chosen, written, strict=True):
                    end = next((at for at, token in enumerate(tokens) if token in self._prompts.end_ids), None)
                    kept = tokens if end is None else tokens[:end]
                    count = len(tokens) if end is None else end + 1
                    replies[i] = Reply(self._prompts.text(kept).strip(), len(ids[i]), count, end is None)
        return [replies[i] for i in range(len(prompts))]

    def _write(self, batch: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        import torch

        pad = self._source.processor.pad_token_id
        ids, mask = pad_before(batch, pad, self._model.device)
        drawn: dict[str, Any] = {"do_sample": True, "temperature": self._temperature, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            texts = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                eos_token_id=sorted(self._prompts.end_ids) or None,
                **(drawn if self._temperature else {"do_sample": False}),
            )
        return [row[ids.shape[1] :].tolist() for row in texts]


def check_endpoint(endpoint: str) -> str:
    """The address of an OpenAI-compatible API without its last slash.

    Raises:
        ConfigError: It is none, has a password in it, or would send a key and texts in the clear to another machine.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"endpoint {endpoint!r} is no address. Write for example https://host/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "endpoint has a user, password or query in it. Write the plain address; the key is read from the "
            "environment (key_variable)."
        )
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ConfigError(
            f"endpoint {endpoint!r} would send the key and your texts unencrypted to another machine. Write https://."
        )
    return endpoint.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class EndpointTeacher:
    """A model behind ``<endpoint>/chat/completions``.

    Args:
        endpoint: Address of the API, such as ``https://host/v1``.
        model: What the endpoint calls the model.
        key_variable: Environment variable with the key; no key is sent when it isn't set.
        temperature: Of the draws; 0 for none.
        seed: Of the draws, where the endpoint knows one.
        concurrency: Requests at a time, >= 1.
        requests_per_minute: Most requests that are begun in a minute; None for as many as are answered.
        timeout_s: Longest wait for an answer, seconds.

    Raises:
        ConfigError: As `check_endpoint`.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        key_variable: str,
        temperature: float,
        seed: int,
        concurrency: int,
        requests_per_minute: float | None,
        timeout_s: float,
    ) -> None:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        self._endpoint = check_endpoint(endpoint)
        self.name = f"{model} at {self._endpoint}"
        self._asked = {"model": model, "temperature": temperature, "seed": seed}
        self._concurrency, self._timeout_s = concurrency, timeout_s
        self._key_variable = key_variable
        self._apart_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._turn, self._next = threading.Lock(), 0.0
        again = Retry(
            total=_TRIES,
            backoff_factor=1,
            status_forcelist=_TRY_AGAIN,
            allowed_methods=None,
            respect_retry_after_header=True,
            raise_on_status=False,
            redirect=0,
        )
        self._session = requests.Session()
        self._session.auth = self._sign  # also keeps requests from sending a password out of ~/.netrc
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=again, pool_maxsize=concurrency))

    def _sign(self, request: Any) -> Any:
        if key := os.environ.get(self._key_variable):
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def answer(self, prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[Reply]:
        """See `Teacher.answer`.

        Raises:
            ModelError: The endpoint can't be reached, refuses, or answers something else.
        """
        with ThreadPoolExecutor(self._concurrency) as pool:
            asked = [pool.submit(self._ask, prompt, max_new_tokens) for prompt in prompts]
            try:
                return [one.result() for one in asked]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _ask(self, prompt: Prompt, max_new_tokens: int) -> Reply:
        import requests
        from urllib3.exceptions import HTTPError

        self._wait()
        content: Any = {**self._asked, "max_tokens": max_new_tokens}
        content["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        try:
            found = self._session.post(
                f"{self._endpoint}/chat/completions",
                json=content,
                timeout=self._timeout_s,
                allow_redirects=False,
                stream=True,
            )
            body = found.raw.read(_MOST_BYTES + 1, decode_content=True)
            found.close()
        except (requests.RequestException, HTTPError) as error:
            raise ModelError(
                f"The endpoint {self._endpoint} can't be asked: {_reason(error)}. What it answered so far is kept; "
                "run the same command again to go on."
            ) from error
        if found.status_code in (401, 403):
            known = "is set" if os.environ.get(self._key_variable) else "isn't set"
            raise ModelError(
                f"The endpoint {self._endpoint} refuses the key (HTTP {found.status_code}); {self._key_variable} "
                f"{known}. Put a valid key there, or name another variable with key_variable."
            )
        if found.status_code != 200:
            raise ModelError(
                f"The endpoint {self._endpoint} answered HTTP {found.status_code}: {_text(body)}. What it "
                "answered so far is kept; run the same command again to go on."
            )
        try:
            if len(body) > _MOST_BYTES:
                raise ValueError
            content = json.loads(body)
            choice = content["choices"][0]
            usage = content.get("usage") or {}
            text = choice["message"]["content"] or ""
            read, written = (int(usage.get(name, -1)) for name in ("prompt_tokens", "completion_tokens"))
            return Reply(str(text).strip(), read, written, choice.get("finish_reason") == "length")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ModelError(
                f"The endpoint {self._endpoint} answered something else than a chat completion: {_text(body)}. "
                "Give the address under which /chat/completions is."
            ) from error

    def _wait(self) -> None:
        """Returns when a request may begin."""
        if not self._apart_s:
            return
        with self._turn:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + self._apart_s
        time.sleep(at - now)


def _text(body: bytes) -> str:
    return repr(body[:200].decode("utf-8", errors="replace"))


def _reason(error: Exception) -> str:
    """The innermost cause, without the address and its parameters over and over."""
    inner: Any = error
    while getattr(inner, "reason", None) is not None or getattr(inner, "args", None):
        deeper = getattr(inner, "reason", None) or inner.args[0]
        if not isinstance(deeper, Exception):
            break
        inner = deeper
    return str(inner)[:200]
