"""The half that every scripted peer shares: numbers, tallies and the conversation with the harness.

One call in FD_EVERY is to EchoFd, and has a descriptor along whose content is the call's number.
The harness writes one command per line (go, stop, drain, report); end of file ends the peer.
Arguments are key=value: address, id, name, interval (ms), window, call (a bus name, repeatable),
subscribe (a stream, repeatable), emit (a stream).
"""
import os
import sys

PATH = "/org/busdaemon/Load"
INTERFACE = "org.busdaemon.Load1"
TIMEOUT_S = 300
FD_EVERY = 10


def numbered_fd(number):
    """A memory file that holds the number."""
    fd = os.memfd_create("bus-load")
    os.write(fd, number.to_bytes(8, "little"))
    return fd


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Tally:
    """Checks that the numbers 1, 2, 3... of one stream come once each and in order."""

    def __init__(self):
        self.count = self.last = self.doubled = self.reordered = 0
        self.missing = set()

    def record(self, number):
        self.count += 1
        if number == self.last + 1:
            self.last = number
        elif number > self.last:
            self.missing.update(range(self.last + 1, min(number, self.last + 100000)))
            self.last = number
        elif number in self.missing:
            self.missing.remove(number)
            self.reordered += 1
        else:
            self.doubled += 1

    def __str__(self):
        return "%d %d %d %d %d" % (self.count, self.last, len(self.missing), self.doubled, self.reordered)


class Load:
    """What this peer sends and what it expects. The backend gives call(), emit(), barrier() and quit()."""

    def __init__(self, backend):
        self.backend = backend
        one = dict(a.split("=", 1) for a in sys.argv[1:])
        many = lambda key: [a.split("=", 1)[1] for a in sys.argv[1:] if a.split("=", 1)[0] == key]
        self.address, self.id, self.name = one["address"], one["id"], one["name"]
        self.interval_ms, self.window = int(one.get("interval", "20")), int(one.get("window", "2"))
        self.targets, self.subscriptions, self.emits = many("call"), many("subscribe"), one.get("emit")
        self.sent = {self.call_stream(t): 0 for t in self.targets}
        self.replies = {self.call_stream(t): Tally() for t in self.targets}
        self.outstanding = {t: 0 for t in self.targets}
        self.got = {s: Tally() for s in self.subscriptions}
        if self.emits:
            self.sent[self.emits] = 0
        self.senders = {}
        self.errors = []
        self.running = self.stopping = False
        self.input = b""
        self.ticks = self.failed = self.fds_sent = self.fds_received = 0

    def call_stream(self, target):
        return "%s>%s" % (self.id, target)

    def rule(self, stream):
        return "type='signal',interface='%s',member='Tick',arg0='%s'" % (INTERFACE, stream)

    def received(self, stream, number, sender):
        """A call or a signal came in."""
        stream, sender = str(stream), str(sender)
        if self.senders.setdefault(stream, sender) != sender:
            self.error("stream %s came from %s and from %s" % (stream, self.senders[stream], sender))
        self.got.setdefault(stream, Tally()).record(int(number))

    def received_fd(self, number, fd):
        """A descriptor came with a call. It is only looked at."""
        content = int.from_bytes(os.pread(fd, 8, 0), "little")
        self.fds_received += 1
        if content != int(number):
            self.error("call %d carries the descriptor of call %d" % (number, content))

    def error(self, text):
        self.failed += 1
        if len(self.errors) < 20:
            self.errors.append(" ".join(str(text).split()))

    def tick(self):
        """Sends what is due; called every interval."""
        self.ticks += 1
        if self.ticks % max(1, 300 // self.interval_ms) == 0:
            say("progress %d" % (sum(self.sent.values()) + sum(t.count for t in self.got.values())))
        if not self.running:
            return
        for target in self.targets:
            if self.outstanding[target] < self.window:
                stream = self.call_stream(target)
                self.sent[stream] += 1
                self.outstanding[target] += 1
                number = self.sent[stream]
                if number % FD_EVERY:
                    self.backend.call(target, stream, number)
                    continue
                fd = numbered_fd(number)
                self.fds_sent += 1
                self.backend.call_with_fd(target, stream, number, fd)
                os.close(fd)
        if self.emits:
            self.sent[self.emits] += 1
            self.backend.emit(self.emits, self.sent[self.emits])

    def replied(self, target, stream, number):
        self.outstanding[target] -= 1
        if stream == self.call_stream(target):
            self.replies[stream].record(int(number))
        else:
            self.error("a reply of stream %s came to a call of %s" % (stream, self.call_stream(target)))
        self.settle()

    def call_failed(self, target, text):
        self.outstanding[target] -= 1
        self.error("call to %s failed: %s" % (target, text))
        self.settle()

    def settle(self):
        if self.stopping and not any(self.outstanding.values()):
            self.stopping = False
            self.backend.barrier(lambda: say("stopped"))

    def readable(self):
        """Standard input is readable. False at its end."""
        chunk = os.read(0, 4096)
        if not chunk:
            self.backend.quit()
            return False
        *lines, self.input = (self.input + chunk).split(b"\n")
        for line in lines:
            self.command(line.decode())
        return True

    def command(self, line):
        if line == "go":
            self.running = True
        elif line == "stop":
            self.running, self.stopping = False, True
            self.settle()
        elif line == "drain":
            self.backend.barrier(lambda: say("drained"))
        elif line == "report":
            for stream, count in self.sent.items():
                say("sent %s %d" % (stream, count))
            for stream, tally in self.replies.items():
                say("replies %s %s" % (stream, tally))
            for stream, tally in self.got.items():
                say("got %s %s" % (stream, tally))
            say("fds %d %d" % (self.fds_sent, self.fds_received))
            for text in self.errors:
                say("error " + text)
            say("end")

    def disconnected(self, text="the bus closed the connection"):
        say("disconnected " + text)
        self.backend.quit()
