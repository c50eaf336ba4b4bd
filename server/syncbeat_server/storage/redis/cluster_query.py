"""Sends a query to every process over Redis, and collects their answers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.bus import RedisBus

_QUESTIONS = "questions"
_SEPARATOR = "\x1f"


class _Pending:
    def __init__(self) -> None:
        self.answers: list[str] = []
        self.arrived = asyncio.Event()


class ClusterQuery:
    """Sends queries of this process and answers those of others. The bus's listener must listen to its `topics`."""

    def __init__(self, bus: RedisBus, answer: Callable[[str], str]) -> None:
        """`answer(question)` returns the answer of this process to any question, its own too."""
        self._bus = bus
        self._answer = answer
        self._replies = f"replies:{uuid.uuid4().hex}"
        self._pending: dict[str, _Pending] = {}
        self.topics = (_QUESTIONS, self._replies)

    async def ask(self, question: str) -> list[str]:
        """Return the answers of all processes, this one included; those that take more than a second are left out.

        Raises:
            DependencyDown: Redis does not answer, so the others cannot be asked.
        """
        try:
            async with asyncio.timeout(self._bus.timings.query_s):
                await self._bus.until_listening()  # the process may have just started
        except TimeoutError:
            raise DependencyDown("redis does not answer, so the other processes cannot be asked") from None
        number, pending = uuid.uuid4().hex, _Pending()
        self._pending[number] = pending
        try:
            async with asyncio.timeout(self._bus.timings.query_s):
                asked = await self._bus.announce(_QUESTIONS, _SEPARATOR.join((self._replies, number, question)))
                while len(pending.answers) < asked:
                    pending.arrived.clear()
                    await pending.arrived.wait()
        except TimeoutError:
            pass
        finally:
            del self._pending[number]
        return pending.answers

    def handle(self, topic: str, message: str) -> bool:
        """Handle a message of the bus; return True if its topic is one of `topics`."""
        if topic == _QUESTIONS:
            replies, _, rest = message.partition(_SEPARATOR)
            number, _, question = rest.partition(_SEPARATOR)
            self._bus.publish(replies, f"{number}{_SEPARATOR}{self._answer(question)}")
        elif topic == self._replies:
            number, _, answer = message.partition(_SEPARATOR)
            pending = self._pending.get(number)
            if pending is not None:
                pending.answers.append(answer)
                pending.arrived.set()
        return topic in self.topics
