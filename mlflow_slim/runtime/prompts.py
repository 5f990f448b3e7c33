"""Prompts and chats to tokens and tokens to text, by ``tokenizer.json`` and the model's own chat template alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str]) -> str:
    """The prompt that a chat becomes, ready for the assistant's answer.

    Templates come with a model, so they are run in jinja2's sandbox.

    Args:
        template: The model's chat template.
        messages: ``{"role": ..., "content": ...}`` each.
        special: ``bos_token``, ``eos_token`` and the like, by name.

    Raises:
        ValueError: The template refuses these messages.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise ValueError(f"The model's chat template refuses these messages: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages], add_generation_prompt=True, **special
        )
    except TemplateError as error:
        raise ValueError(f"The model's chat template can't be used on these messages: {error}") from error


def shown(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt as one text, for people and for comparing; the messages of a chat one a line."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


class PromptFile:
    """Encodes with ``tokenizer.json`` of a bundle, and decodes what was written.

    Args:
        path: The tokenizer file.
        inputs: ``end_ids``, and where the model has one ``chat_template`` with its ``special`` tokens.
        chat: Whether a plain prompt is sent as a user's message of a chat.
    """

    def __init__(self, path: Path, inputs: Mapping[str, Any], *, chat: bool) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._template: str | None = inputs.get("chat_template")
        self._special = dict(inputs.get("special", {}))
        self._chat = chat
        self.size = int(self._tokenizer.get_vocab_size())
        self.end_ids = frozenset(int(token) for token in inputs.get("end_ids", ()))

    def prompt(self, prompt: str | Sequence[Mapping[str, Any]]) -> list[int]:
        """Tokens of a prompt, or of the messages of a chat; an empty prompt has none.

        Raises:
            ValueError: Messages, and the model has no chat template.
        """
        if isinstance(prompt, str) and not self._chat:
            return list(self._tokenizer.encode(prompt).ids) if prompt else []
        if self._template is None:
            raise ValueError("The model has no chat template, so it can't answer messages. Send a text.")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = render_chat(self._template, messages, self._special)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)  # the template writes them itself

    def continuation(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens of a text that follows a prompt, and where each ends in it, in UTF-8 bytes."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        sizes = [0]
        for character in text:
            sizes.append(sizes[-1] + len(character.encode("utf-8")))
        return list(encoded.ids), [sizes[end] for _, end in encoded.offsets]

    def without_chat(self) -> PromptFile:
        """The same file, and prompts are sent as they are."""
        plain = copy.copy(self)
        plain._chat = False
        return plain

    def seam(self, prompt: str, text: str) -> tuple[list[int], list[int]]:
        """Tokens of a prompt as it is and of a text after it, those at the seam as of the two together.

        An empty prompt is the token that begins a text, or else one that ends a text, where the model has either.
        """
        before = list(self._tokenizer.encode(prompt).ids)
        if not before:
            begin = self._tokenizer.token_to_id(self._special.get("bos_token", ""))
            before = [begin] if begin is not None else sorted(self.end_ids)[:1]
            return before, self.continuation(text)[0]
        whole = list(self._tokenizer.encode(prompt + text).ids)
        if whole[: len(before)] == before and len(whole) > len(before):
            return before, whole[len(before) :]
        return before, self.continuation(text)[0]

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def exact_text(self, ids: Sequence[int]) -> str:
        """The text of tokens with all special ones."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
