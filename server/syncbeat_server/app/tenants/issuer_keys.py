"""Keeps the key stores of the issuers that publish their keys, as issuers come and go with the apps file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from syncbeat_server.app.token_issuers import ConfiguredIssuer
from syncbeat_server.auth.model import Issuer
from syncbeat_server.auth.tokens.jwks import JwksStore
from syncbeat_server.clock import Clock
from syncbeat_server.ops.work_origin import fresh_context, name_of, task_origin

_Made: TypeAlias = tuple[str, Issuer, frozenset[str]]


class IssuerKeys:
    """Key stores of this process. An issuer whose settings stay keeps its store, and so the keys it has fetched."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[_Made, JwksStore] = {}
        self._changed = asyncio.Event()
        self.current: Mapping[str, JwksStore] = {}

    def stores(self) -> tuple[JwksStore, ...]:
        """Return the stores of the issuers that are configured now."""
        return tuple(self.current.values())

    def failing(self) -> list[str]:
        """Return the issuers whose last fetch failed."""
        return [store.issuer.name for store in self.current.values() if store.is_failing]

    def stores_of(self, issuers: Iterable[ConfiguredIssuer]) -> dict[str, JwksStore]:
        """Return the store of each of these issuers that publishes keys, by its name. Nothing is fetched yet."""
        made = {
            one.issuer.name: (one.jwks_url, one.issuer, frozenset(row.kid for row in one.rows))
            for one in issuers
            if one.jwks_url
        }
        return {name: self._open.get(key) or self._make(*key) for name, key in made.items()}

    def use(self, stores: Mapping[str, JwksStore]) -> None:
        """Fetch the keys of these issuers, and of no others, from now on."""
        self.current = stores
        self._open |= {store.made_of: store for store in stores.values()}
        self._changed.set()

    async def run(self) -> None:
        """Keep the keys of the issuers that are configured fresh, for ever, and close the stores of others."""
        running: dict[JwksStore, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                for store in set(self.stores()) - running.keys():
                    work = store.run()
                    context = fresh_context(task_origin(name_of(work)))
                    running[store] = group.create_task(work, name=name_of(work), context=context)
                # Those of a change that was undone at once are open too, and never ran.
                gone = set(self._open.values()) - set(self.stores())
                for store in gone:
                    del self._open[store.made_of]  # before anything is awaited: one that comes back gets a new store
                for store in gone:
                    if store in running:
                        task = running.pop(store)
                        task.cancel()
                        await asyncio.wait([task])
                    await store.close()
                await self._changed.wait()

    async def close(self) -> None:
        """Close the connections to issuers."""
        for store in self._open.values():
            await store.close()

    def _make(self, url: str, issuer: Issuer, kids: frozenset[str]) -> JwksStore:
        made = JwksStore(url, issuer, self._clock, kids)
        same = (url, issuer.name, issuer.app_id)
        before = [store for (url_, other, _), store in self._open.items() if (url_, other.name, other.app_id) == same]
        if before:
            made.take_over(max(before, key=lambda store: store.fetched_at))
        return made
