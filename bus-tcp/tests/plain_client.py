#!/usr/bin/env python3
"""A client of the session protocol, written from docs/tcp-protocol.md alone: plain carriers, the standard library.

usage: plain_client.py PORT COUNT

Sends COUNT bytes, byte n being (n * 7 + n // 251) & 255, ends its stream, and reads until the host has ended its own;
prints how many bytes came, their SHA-256, and how often the session was resumed.
"""
import hashlib
import hmac
import os
import random
import socket
import struct
import sys
import time

HELLO, WELCOME, DATA, ACK, PING, PONG, RESUME, RESUMED, GONE, RETRY, DETACH, BYE, CHALLENGE = range(1, 14)
PREAMBLE = b"BUSS" + bytes([1, 1]) + struct.pack(">I", 0)
LENGTHS = {WELCOME: 82, ACK: 16, PING: 8, PONG: 8, RESUMED: 58, GONE: 10, DETACH: 4, BYE: 9, CHALLENGE: 42}
CREDIT = 100_000
WINDOW = 10_000


class Lost(Exception):
    """The carrier is of no use any more; the session is."""


class Over(Exception):
    """The session is over."""


def frame(kind, body):
    return struct.pack(">I", kind << 24 | len(body)) + body


def pattern(start, end):
    return bytes((n * 7 + n // 251) & 255 for n in range(start, end))


class Session:
    def __init__(self, port, count):
        self.port = port
        self.session = self.secret = None
        self.attempt = self.resumed = self.failures = 0
        # This side's stream: all of it is known, so nothing has to be kept.
        self.end = count
        self.acked = self.sent = self.high = self.credit = 0
        self.confirmed = False  # the host has our BYE
        self.confirms = False  # and was told that we have its
        # The host's stream.
        self.received = self.told = 0
        self.host_end = None
        self.digest = hashlib.sha256()
        self.done = False

    # One carrier.

    def carry(self):
        self.carrier = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        self.carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.input = b""
            self.open()
            self.live()
        finally:
            self.carrier.close()

    def more(self, wait):
        """Reads what comes within so many seconds."""
        self.carrier.settimeout(max(wait, 0.001))
        try:
            some = self.carrier.recv(65536)
        except socket.timeout:
            return False
        if not some:
            raise Lost("the host closed the carrier")
        self.input += some
        return True

    def head(self):
        head = struct.unpack(">I", self.input[:4])[0]
        return head >> 24, head & 0xFFFFFF

    def answer(self, until):
        """The next frame, which is none of DATA."""
        while len(self.input) < 4 or len(self.input) < 4 + self.head()[1]:
            if len(self.input) >= 4 and self.head()[1] > 1020:
                raise Lost("not this protocol")
            if time.monotonic() > until:
                raise Lost("no answer")
            self.more(until - time.monotonic())
        kind, length = self.head()
        body, self.input = self.input[4 : 4 + length], self.input[4 + length :]
        return kind, body

    def open(self):
        until = time.monotonic() + 10
        kind, body = self.answer(until)
        if kind != CHALLENGE or body[:4] != b"BUSS" or not body[4] <= 1 <= body[5]:
            raise Lost("no challenge")
        nonce = body[10:]
        if self.session is None:
            terms = struct.pack(">IIII", 500, 1500, WINDOW, CREDIT)
            self.send(frame(HELLO, PREAMBLE + terms + os.urandom(8)))
        else:
            self.attempt += 1
            signed = PREAMBLE + self.session + struct.pack(">QQ", self.attempt, self.received)
            self.send(frame(RESUME, signed + self.mac(b"resume", nonce, signed)))
        kind, body = self.answer(until)
        if kind == RETRY:
            time.sleep(struct.unpack(">I", body[:4])[0] / 1000)
            raise Lost("asked to come again")
        if kind == GONE:
            raise Over(f"reason {body[0]}, rule {body[1]}, {struct.unpack('>Q', body[2:])[0]} bytes taken")
        if kind == WELCOME and self.session is None and len(body) == 82:
            self.session, self.secret = body[10:26], body[26:58]
            self.heartbeat, self.dead_after, _, self.credit = struct.unpack(">IIII", body[58:74])
        elif kind == RESUMED and self.session is not None and len(body) == 58:
            if not hmac.compare_digest(self.mac(b"resumed", nonce, body[:26]), body[26:]):
                raise Lost("somebody else's answer")
            there = struct.unpack(">Q", body[10:18])[0]
            if not self.acked <= there <= self.high:
                raise Over(f"the host has {there} bytes, {self.acked} were acknowledged, {self.high} sent")
            self.sent, self.credit = there, max(self.credit, there)
            self.resumed += 1
        else:
            raise Lost("an answer that makes no sense")
        self.failures = 0

    def mac(self, purpose, nonce, signed):
        return hmac.new(self.secret, purpose + nonce + signed, hashlib.sha256).digest()

    def send(self, data):
        self.carrier.settimeout(5)
        self.carrier.sendall(data)

    def live(self):
        self.bye_due = True
        self.data_left = number = 0
        heard = ping_at = now = time.monotonic()
        ack_at = now if self.received else None
        while not self.done:
            now = time.monotonic()
            if now - heard > self.dead_after / 1000:
                raise Lost("silence")
            if now >= ping_at:
                number += 1
                self.send(frame(PING, struct.pack(">Q", number)))
                ping_at = now + self.heartbeat / 1000 * random.uniform(0.8, 1.2)
            if ack_at is not None and (now >= ack_at or self.received - self.told > CREDIT // 4):
                self.told = self.received
                self.send(frame(ACK, struct.pack(">QQ", self.told, self.told + CREDIT)))
                ack_at = None
            sending = self.send_some()
            before = self.received
            if self.more(0 if sending else 0.01):
                heard = time.monotonic()
                while self.take_frame():
                    pass
            if self.received > before and ack_at is None:
                ack_at = time.monotonic() + 0.025

    def send_some(self):
        count = min(self.end - self.sent, self.credit - self.sent, 16_372)
        if count > 0:
            data = pattern(self.sent, self.sent + count)
            # Whatever becomes of the carrier: these may have arrived.
            self.high = max(self.high, self.sent + count)
            self.send(frame(DATA, struct.pack(">Q", self.sent) + data))
            self.sent += count
            return True
        if self.bye_due and self.sent == self.end:
            self.bye_due = False
            self.confirms = self.host_end == self.received
            self.send(frame(BYE, struct.pack(">QB", self.end, self.confirms)))
            self.done = self.confirms and self.confirmed
        return False

    # What comes.

    def take_frame(self):
        """Takes one frame, or what there is of DATA; False if there is not enough, or no more is wanted."""
        if self.data_left:
            return self.take_data()
        if len(self.input) < 4:
            return False
        kind, length = self.head()
        if kind == DATA:
            if not 9 <= length <= 16_380:
                raise Over("a DATA frame of a wrong length")
            if len(self.input) < 12:
                return False
            if struct.unpack(">Q", self.input[4:12])[0] != self.received:
                raise Lost("a gap")
            if self.received + length - 8 > self.told + CREDIT:
                raise Over("more than the credit")
            self.data_left = length - 8
            self.input = self.input[12:]
            return True
        if kind < 0x80 and LENGTHS.get(kind) != length and kind != RETRY:
            raise Over(f"a frame of type {kind} with {length} bytes")
        if len(self.input) < 4 + length:
            return False
        body, self.input = self.input[4 : 4 + length], self.input[4 + length :]
        if kind < 0x80:
            self.control(kind, body)
        return not self.done

    def take_data(self):
        some = self.input[: self.data_left]
        self.input = self.input[len(some) :]
        self.data_left -= len(some)
        self.received += len(some)
        self.digest.update(some)
        return bool(some)

    def control(self, kind, body):
        if kind == ACK:
            offset, credit = struct.unpack(">QQ", body)
            if not self.acked <= offset <= self.high or credit < max(self.credit, offset):
                raise Over("an ACK that goes back or too far")
            self.acked, self.credit = offset, credit
        elif kind == PING:
            self.send(frame(PONG, body))
        elif kind == GONE:
            raise Over(f"reason {body[0]}, rule {body[1]}, {struct.unpack('>Q', body[2:])[0]} bytes taken")
        elif kind == BYE:
            offset, confirmed = struct.unpack(">QB", body)
            if offset != self.received:
                raise Over("BYE before the last byte")
            self.host_end = offset
            self.confirmed = self.confirmed or bool(confirmed)
            self.done = self.confirms and self.confirmed
            self.bye_due = self.bye_due or not self.confirms
        elif kind in (RETRY, DETACH):
            time.sleep(struct.unpack(">I", body[:4])[0] / 1000)
            raise Lost("asked to come again")
        elif kind != PONG:
            raise Over(f"a frame of type {kind} where it has no meaning")

    def run(self):
        while not self.done:
            try:
                self.carry()
            except (Lost, OSError):
                bound = min(0.1 * 2**self.failures, 5)
                self.failures += 1
                time.sleep(random.uniform(0, bound))


def main():
    global WINDOW
    if len(sys.argv) > 3:
        WINDOW = 1000 * int(sys.argv[3])
    session = Session(int(sys.argv[1]), int(sys.argv[2]))
    try:
        session.run()
    except Over as why:
        # A host to which both sides have said BYE forgets all but that.
        if not str(why).startswith("reason 3,") or session.host_end != session.received:
            sys.exit(f"the session is over: {why}")
    print(session.received, session.digest.hexdigest(), session.resumed)


if __name__ == "__main__":
    main()
