from __future__ import annotations
import time
from datetime import timedelta
import asyncpg, redis, asyncio
from tests.fakes import FakeClock, START, wait_until

async def test_clock_moves_db(database, clock, redis_url):
    async with database.connection() as c:
        assert await c.fetchval("select syncbeat_now()") == START
        woke=[]
        async def w():
            await clock.sleep(5); woke.append(1)
        t=asyncio.create_task(w())
        await asyncio.sleep(0)
        await clock.advance(10)
        assert woke==[1]
        assert await c.fetchval("select syncbeat_now()") == START+timedelta(seconds=10)
async def test_a(database): assert database
async def test_b(database): assert database
async def test_c(database): assert database
