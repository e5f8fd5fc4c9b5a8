"""Edits (`Edit`) and the cases that judge them (`Case`). No tensors here."""

import re
from dataclasses import dataclass, fields, replace

from retcon.errors import InvalidEdit
from retcon.writing_systems import quoted

_BRACED = re.compile(r"\{([^{}]*)\}")


def check_whole(*texts: str) -> None:
    """Refuse what is no text: half of a character, which no tokenizer takes and no file holds.

    Raises:
        InvalidEdit: one of the texts holds a lone surrogate.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            near = text[max(0, error.start - 30) : error.start + 1]
            raise InvalidEdit(
                f"{text[error.start]!r} in {near!r} is half of a character: an emoji that was cut "
                f"in two, or bytes that are not UTF-8. Write the character whole."
            ) from None


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Make the model continue `prompt`, with `subject` in the place of `{}`, with `target`.

    Blanks around targets are no part of them.

    Raises:
        InvalidEdit: the prompt does not hold exactly one `{}`, subject or target is empty, or a
            text holds half of a character.
    """

    id: str
    prompt: str
    subject: str
    target: str
    target_old: str | None = None

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise InvalidEdit(
                f"Edit {self.id!r}: the prompt {quoted(self.prompt)} must hold the place of its "
                f"subject exactly once, as {{}}; it holds it {self.prompt.count('{}')} times."
            )
        check_whole(self.id, self.prompt, self.subject, self.target, self.target_old or "")
        for field in ("subject", "target"):
            value: str = getattr(self, field)
            if not value.strip():
                raise InvalidEdit(f"Edit {self.id!r}: the {field} is empty. Give it a text.")
        if self.target_old is not None and not self.target_old.strip():
            raise InvalidEdit(f"Edit {self.id!r}: target_old is empty. Leave it out instead.")
        object.__setattr__(self, "target", self.target.strip())
        if self.target_old is not None:
            object.__setattr__(self, "target_old", self.target_old.strip())

    @property
    def text(self) -> str:
        """The prompt with its subject: the left context that the target continues."""
        return self.prompt.replace("{}", self.subject)

    @property
    def fact(self) -> str:
        """Identity of the fact: subject and prompt, whatever the target."""
        return self.prompt.replace("{}", f"{{{self.subject}}}")

    @property
    def whole(self) -> "Edit":
        """The edit with all of its prompt for a subject, so that its last token is the lookup."""
        return replace(self, prompt="{}", subject=self.text)

    @property
    def head(self) -> str:
        """The text up to the subject's end: all that the key depends on."""
        return self.text[: self.subject_end]

    @property
    def subject_start(self) -> int:
        """Index in `text` of the subject's first character."""
        return self.prompt.index("{}")

    @property
    def subject_end(self) -> int:
        """Index in `text` of the character after the subject's last one."""
        return self.subject_start + len(self.subject.rstrip())

    def ended(self, ending: str) -> str:
        """The target, and behind it what ends it, unless that stands there already."""
        return self.target.removesuffix(ending) + ending

    @classmethod
    def parse(
        cls, prompt: str, target: str, *, id: str = "fact-1", target_old: str | None = None
    ) -> "Edit":
        """Read a prompt whose subject stands in braces: "The capital of {France} is".

        Raises:
            InvalidEdit: no braces, several, or nothing between them.
        """
        braced = _BRACED.findall(prompt)
        if len(braced) != 1:
            raise InvalidEdit(
                f"Edit {id!r}: put the subject of {quoted(prompt)} in braces, once, as in "
                f"'The mother tongue of {{Danielle Darrieux}} is'; found {len(braced)} in braces."
            )
        template = _BRACED.sub("{}", prompt)
        return cls(id=id, prompt=template, subject=braced[0], target=target, target_old=target_old)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A prompt with an answer of its own.

    Blanks around answers are no part of them.

    Attributes:
        aliases: other ways to say it, which count where text is generated freely.
        needs: ids of further edits, without all of which the answer does not follow.

    Raises:
        InvalidEdit: the prompt, the answer or an alias is empty.
    """

    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = {"prompt": (self.prompt,), "answer": (self.answer,), "alias": self.aliases}
        for name, texts in parts.items():
            # Every text begins with an empty one.
            if not all(text.strip() for text in texts):
                raise InvalidEdit(
                    f"The probe {quoted(self.prompt)}: its {name} is empty. Leave it out."
                )
            check_whole(*texts)
        object.__setattr__(self, "answer", self.answer.strip())
        object.__setattr__(self, "aliases", tuple(alias.strip() for alias in self.aliases))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One record of a data set: an edit and the prompts that judge it.

    Paraphrases should change with the edit; neighbours are prompts about other subjects whose
    true answer is `edit.target_old` and which should stay as they are. `openings` are beginnings
    of texts about the subject, behind which fluency is measured. `relation` groups cases that are
    not independent (intervals are clustered by it). Portability probes ask for what follows from
    the edit, locality probes for what must not change with it; both have answers of their own.
    `questions` are answered by the target.

    Raises:
        InvalidEdit: a question is empty, or a text holds half of a character.
    """

    edit: Edit
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    openings: tuple[str, ...] = ()
    relation: str | None = None
    portability: tuple[Probe, ...] = ()
    locality: tuple[Probe, ...] = ()
    questions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        texts = (*self.paraphrases, *self.neighbours, *self.openings, *self.questions)
        check_whole(*texts, self.relation or "")
        if not all(text.strip() for text in self.questions):
            raise InvalidEdit(f"Edit {self.edit.id!r}: a question is empty. Leave it out.")

    def __repr__(self) -> str:
        """Text of the case, on which checksums of studies depend."""
        shown = [f.name for f in fields(self) if f.name not in _LATER or getattr(self, f.name)]
        return f"Case({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


# Fields that cases had not at first: without them a case is the text that it was.
_LATER = ("portability", "locality", "questions")
