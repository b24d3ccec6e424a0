"""What the LM reads around a text, and questions and answers as token ids: the same for training and for every row of the scoreboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lsm.lm.tokens import Tokens
from lsm.text.questions import Question

SHOT = """Text: The mill at Harrow Bend was built in 1862 by Thomas Reed, a carpenter from Leeds. It ground corn until the flood of 1907.
Question: Who built the mill?
Answer: Thomas Reed
Question: What ended its work?
Answer: the flood of 1907
Question: In what year was it built?
Answer: 1862

Text:"""
AGAIN = "\nThe text again:"
_LONGEST_ANSWER = 32


@dataclass(frozen=True)
class Prompts:
    """How questions are put to one LM."""

    tokens: Tokens
    shots: bool = True

    @property
    def preamble(self) -> list[int]:
        """Tokens before every text: one worked example, which shows how short an answer is."""
        return self.tokens.encode([SHOT if self.shots else "Text:"])[0]

    def questions(self, questions: Sequence[Question], *, anchor: str = "Answer:") -> list[list[int]]:
        """What follows a text."""
        return self.tokens.encode(
            [f"\nQuestion: {one.question}\n{anchor}" if anchor else f"\nQuestion: {one.question}" for one in questions]
        )

    def answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Each answer with the line break that ends it."""
        end = self.tokens.encode(["\n"])[0]
        return [row[:_LONGEST_ANSWER] + end for row in self.tokens.encode([" " + answer for answer in answers])]
