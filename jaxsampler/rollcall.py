"""Processes that know of one another: who is there, what each has to say, and who is gone.

Process 0 keeps a desk, a TCP port; all processes, it too, are members. A message is a line of JSON. A member
says hello, then gives values: when all have given one, each is sent the list, which is a barrier as well.
Both sides send a beat every few seconds. A connection that ends before the last list, or stays silent, is a
process that died; the desk tells the others, which then leave.

JAX's own connections to process 0 run through the desk's port too (a tunnel), for two reasons. One open port
is enough. And when process 0 dies, JAX aborts all others at once, before they can say why: at the end of a
tunnel it does not notice, and they leave in good order.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

BEAT, SILENT = 5.0, 60.0  # seconds between beats; and without one until a process counts as dead
LAST_WORDS = 3.0  # seconds for the others to hear who is gone
SHORT = 10.0  # seconds for a stranger to say hello
LONGEST = 2**28  # bytes of a message

T = TypeVar("T")
Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
quiet = contextlib.suppress(OSError, TimeoutError)


async def say(writer: Writer, **message: Any) -> None:
    """Send a line; who is gone does not hear it."""
    if writer.is_closing():
        return
    with quiet:
        writer.write(json.dumps(message).encode() + b"\n")
        await writer.drain()


async def hear(reader: Reader, seconds: float) -> dict[str, Any] | None:
    """The next message; None: the other side is gone, is silent, or does not speak this language."""
    try:
        async with asyncio.timeout(seconds):
            line = await reader.readline()
        message = json.loads(line)
    except (OSError, TimeoutError, ValueError):
        return None
    return message if isinstance(message, dict) else None


async def pump(reader: Reader, writer: Writer) -> None:
    """Pass bytes on until there are no more."""
    with quiet:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()


async def both(one: tuple[Reader, Writer], other: tuple[Reader, Writer]) -> None:
    """Join two connections until one of them ends."""
    ways = [asyncio.create_task(pump(a[0], b[1])) for a, b in ((one, other), (other, one))]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        way.cancel()


def told(number: int, total: int, why: str | None) -> str:
    """Say which process is gone, and why if it could say so."""
    return f"process {number} of {total} {'died' if why is None else f'stopped: {why}'}"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Desk:
    """What process 0 keeps: the members' connections, and what each has given so far.

    Args:
        inner: the local port of JAX's own service, where tunnels lead.
    """

    def __init__(self, total: int, inner: int):
        self.total, self.inner = total, inner
        self.members: dict[int, Writer] = {}
        self.given: list[dict[int, Any]] = []  # of each round
        self.rounds = [0] * total
        self.over = False

    async def open(self, port: int) -> None:
        """Listen on all interfaces."""
        self.server = await asyncio.start_server(self.meet, None, port, limit=LONGEST)

    async def meet(self, reader: Reader, writer: Writer) -> None:
        """One connection, from its first line to its end."""
        hello = await hear(reader, SHORT)
        if hello is not None and "tunnel" in hello:
            await self.tunnel(reader, writer)
        elif hello is not None and isinstance(hello.get("process"), int):
            await self.attend(hello, reader, writer)
        writer.close()  # a stranger's, or one that has ended

    async def tunnel(self, reader: Reader, writer: Writer) -> None:
        """Join a connection to JAX's service, once that listens."""
        for _ in range(int(SILENT / 0.1)):
            with quiet:
                await both((reader, writer), await asyncio.open_connection("127.0.0.1", self.inner))
                return
            await asyncio.sleep(0.1)

    async def attend(self, hello: dict[str, Any], reader: Reader, writer: Writer) -> None:
        """A member, or one that does not fit: then all are sent away."""
        number, misfit = hello["process"], None
        if hello.get("processes") != self.total:
            misfit = f"process {number} counts {hello.get('processes')} processes, process 0 {self.total}"
        elif number in self.members:
            misfit = f"two processes are number {number}"
        self.members.setdefault(number, writer)
        if misfit:
            await self.refuse(f"{misfit}: give all the same --processes, and each a --process of its own")
            await say(writer, refused=f"{misfit}: see the other processes")
            return
        if len(self.members) == self.total:
            for member in self.members.values():
                await say(member, welcome=True)
        while (message := await hear(reader, SILENT)) is not None:
            if "give" in message:
                await self.collect(number, message["give"], message["last"])
            elif "fail" in message:
                return await self.lose(number, message["fail"])
        await self.lose(number, None)

    async def refuse(self, why: str) -> None:
        """Send everybody away."""
        for member in self.members.values():
            await say(member, refused=why)

    async def absent(self, seconds: float) -> None:
        """Send everybody away if some are missing for too long."""
        await asyncio.sleep(seconds)
        missing = [str(i) for i in range(self.total) if i not in self.members]
        if missing:
            who = f"process{'es' if len(missing) > 1 else ''} {', '.join(missing)} of {self.total}"
            await self.refuse(f"{who} did not join within {seconds:g} s: start all {self.total}")

    async def collect(self, number: int, value: Any, last: bool) -> None:
        """Note what a member gave; send the list to all when it is complete. After the last they may go."""
        turn = self.rounds[number]
        self.rounds[number] += 1
        if turn == len(self.given):
            self.given.append({})
        self.given[turn][number] = value
        if len(self.given[turn]) == self.total:
            values = [self.given[turn].pop(i) for i in range(self.total)]
            self.over |= last
            for member in self.members.values():
                await say(member, all=values, last=last)

    async def lose(self, number: int, why: str | None) -> None:
        """Tell all that this process is gone, process 0 last: with it ends the desk."""
        if self.over:
            return
        self.over = True
        others = [member for i, member in self.members.items() if i not in (0, number)]
        for member in others:
            await say(member, gone=[number, why])
        await self.empty(others)
        for i in {number: "first", 0: "last"}:
            if i in self.members:
                await say(self.members[i], gone=[number, why])

    async def empty(self, members: list[Writer]) -> None:
        """Wait until these have gone, but not for long."""
        with quiet:
            async with asyncio.timeout(LAST_WORDS):
                await asyncio.gather(*(member.wait_closed() for member in members), return_exceptions=True)


class Member:
    """One of the processes, seen from inside: its connection, kept by a thread of its own.

    Args:
        desk: the host and port of process 0.
        gone: called from that thread with a line that says which process is gone.
        patience: seconds for all to come.

    Raises:
        ValueError: they did not come, or do not fit, or process 0 cannot have its port.
    """

    def __init__(
        self,
        number: int,
        total: int,
        desk: tuple[str, int],
        *,
        gone: Callable[[str], None],
        patience: float,
    ):
        self.number, self.total, self.gone, self.patience = number, total, gone, patience
        self.host, self.port = desk if number else ("127.0.0.1", desk[1])
        self.inner, self.over = free_port(), False  # where this process reaches JAX's service
        self.values: asyncio.Queue[list[Any]] = asyncio.Queue()
        self.tasks: set[asyncio.Task] = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True, name="roll call")
        self.thread.start()
        try:
            self._do(self._join())
        except BaseException:
            self._end()
            raise

    def gather(self, value: Any = None, seconds: float | None = None, *, last: bool = False) -> list[Any]:
        """Give a value that JSON can hold and wait for those of all processes, by number.

        Args:
            last: the processes may end from then on.

        Raises:
            TimeoutError: some did not give theirs within `seconds`.
        """
        return self._do(self._gather(value, seconds, last))

    def fail(self, why: str) -> None:
        """Say why this process stops; returns when the others know, or after some seconds."""
        self.over = True
        self._do(self._fail(why))

    def leave(self) -> None:
        """Close the connections after the last `gather`, those of the desk last."""
        self._do(self._leave())
        self._end()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self.tasks.add(task)  # the loop itself holds no reference
        task.add_done_callback(self.tasks.discard)
        return task

    def _end(self) -> None:
        self.loop.set_exception_handler(lambda *_: None)  # asyncio reports what is cancelled
        self._do(self._cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _cancel(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _join(self) -> None:
        if self.number == 0:
            self.desk = Desk(self.total, self.inner)
            try:
                await self.desk.open(self.port)
            except OSError as error:
                why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
                raise ValueError(f"cannot listen on port {self.port}: {why}; choose another") from None
            self._keep(self.desk.absent(self.patience))
        self.reader, self.writer = await self._reach()
        await say(self.writer, process=self.number, processes=self.total)
        answer = {"beat": True}
        while answer and "beat" in answer:
            answer = await hear(self.reader, self.patience + SHORT)
        if not answer or "welcome" not in answer:
            raise ValueError((answer or {}).get("refused") or self._lost(answer))
        if self.number:
            server = await asyncio.start_server(self._tunnel, "127.0.0.1", 0)
            self.inner = server.sockets[0].getsockname()[1]
        self.beating = self._keep(self._beat())
        self.listening = self._keep(self._listen())

    async def _reach(self) -> tuple[Reader, Writer]:
        """The connection to the desk, which may open later than this process starts."""
        reason, end = "", self.loop.time() + self.patience
        while self.loop.time() < end:
            try:
                async with asyncio.timeout(min(SHORT, self.patience)):
                    return await asyncio.open_connection(self.host, self.port, limit=LONGEST)
            except TimeoutError:
                reason = "no answer"
            except OSError as error:
                system = (error.errno or 0) > 0  # asyncio has words of its own
                reason = (os.strerror(error.errno or 0) if system else error.strerror or str(error)).lower()
            await asyncio.sleep(0.1)
        what = f"no process 0 at {self.host}:{self.port} within {self.patience:g} s ({reason})"
        raise ValueError(f"{what}: is it started there, and can that port be reached from here?")

    async def _tunnel(self, reader: Reader, writer: Writer) -> None:
        """Lead a connection of JAX to the desk; this end stays open when the other is lost."""
        with quiet:
            there = await asyncio.open_connection(self.host, self.port)
            await say(there[1], tunnel=True)
            back = asyncio.create_task(pump(there[0], writer))
            await pump(reader, there[1])
            back.cancel()
            there[1].close()
        writer.close()

    async def _gather(self, value: Any, seconds: float | None, last: bool) -> list[Any]:
        await say(self.writer, give=value, last=last)
        async with asyncio.timeout(seconds):
            return await self.values.get()

    async def _fail(self, why: str) -> None:
        await say(self.writer, fail=why)
        await asyncio.wait([self.listening], timeout=2 * LAST_WORDS)

    async def _leave(self) -> None:
        if self.number == 0:
            await self.desk.empty([member for i, member in self.desk.members.items() if i])
        self.writer.close()

    async def _beat(self) -> None:
        while True:
            await say(self.writer, beat=True)
            if self.number == 0:
                for member in self.desk.members.values():
                    await say(member, beat=True)
            await asyncio.sleep(BEAT)

    async def _listen(self) -> None:
        while (message := await hear(self.reader, SILENT)) is not None and "gone" not in message:
            if "all" in message:
                self.over |= message["last"]
                await self.values.put(message["all"])
        self.beating.cancel()
        self.writer.close()
        if not self.over:
            self.gone(self._lost(message))

    def _lost(self, message: dict[str, Any] | None) -> str:
        number, why = (message or {}).get("gone", (0, None))  # without a word it is the desk that is gone
        return told(number, self.total, why)
