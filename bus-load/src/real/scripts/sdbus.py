# A long-lived peer on sd-bus: libsystemd itself, called through ctypes.
import ctypes
import select
import time
from ctypes import POINTER, byref, c_char_p, c_int, c_uint64, c_void_p

sd = ctypes.CDLL("libsystemd.so.0")
HANDLER = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p)
BUS = (b"org.freedesktop.DBus", b"/org/freedesktop/DBus", b"org.freedesktop.DBus")
sd.sd_bus_message_get_sender.restype = c_char_p
for function in ("sd_bus_message_get_sender", "sd_bus_message_get_error", "sd_bus_get_fd", "sd_bus_get_events"):
    getattr(sd, function).argtypes = [c_void_p]


class Error(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("message", c_char_p), ("need_free", c_int)]


sd.sd_bus_message_get_error.restype = POINTER(Error)


def check(result, what):
    if result < 0:
        raise OSError(-result, what)
    return result


def read_st(message):
    stream, number = c_char_p(), c_uint64()
    check(sd.sd_bus_message_read(c_void_p(message), b"st", byref(stream), byref(number)), "read")
    return stream.value.decode(), number.value


class Backend:
    def __init__(self):
        self.load = Load(self)
        self.alive = True
        self.bus = c_void_p()
        check(sd.sd_bus_new(byref(self.bus)), "sd_bus_new")
        check(sd.sd_bus_set_address(self.bus, self.load.address.encode()), "set_address")
        check(sd.sd_bus_set_bus_client(self.bus, 1), "set_bus_client")
        check(sd.sd_bus_start(self.bus), "start")
        check(sd.sd_bus_set_method_call_timeout(self.bus, c_uint64(TIMEOUT_S * 1000000)), "timeout")
        self.kept = [HANDLER(self.called), HANDLER(self.signalled), HANDLER(self.barrier_done)]
        self.on_call, self.on_signal, self.on_barrier = self.kept
        self.on_reply = {target: HANDLER(self.reply_handler(target)) for target in self.load.targets}
        self.barriers = []
        check(sd.sd_bus_add_object(self.bus, None, PATH.encode(), self.on_call, None), "add_object")
        for stream in self.load.subscriptions:
            check(sd.sd_bus_add_match(self.bus, None, self.load.rule(stream).encode(), self.on_signal, None), "match")
        check(sd.sd_bus_request_name(self.bus, self.load.name.encode(), c_uint64(0)), "request_name")
        unique = c_char_p()
        check(sd.sd_bus_get_unique_name(self.bus, byref(unique)), "unique name")
        say("ready " + unique.value.decode())

    def called(self, message, _userdata, _error):
        has_fd = sd.sd_bus_message_is_method_call(c_void_p(message), INTERFACE.encode(), b"EchoFd")
        if not has_fd and not sd.sd_bus_message_is_method_call(c_void_p(message), INTERFACE.encode(), b"Echo"):
            return 0
        stream, number = read_st(message)
        if has_fd:
            # The message's own, which it closes.
            fd = c_int()
            check(sd.sd_bus_message_read(c_void_p(message), b"h", byref(fd)), "read")
            self.load.received_fd(number, fd.value)
        self.load.received(stream, number, sd.sd_bus_message_get_sender(message).decode())
        check(sd.sd_bus_reply_method_return(c_void_p(message), b"st", stream.encode(), c_uint64(number)), "reply")
        return 1

    def signalled(self, message, _userdata, _error):
        self.load.received(*read_st(message), sd.sd_bus_message_get_sender(message).decode())
        return 0

    def reply_handler(self, target):
        def handler(message, _userdata, _error):
            error = sd.sd_bus_message_get_error(message)
            if error:
                self.load.call_failed(target, "%s: %s" % (error.contents.name, error.contents.message))
            else:
                self.load.replied(target, *read_st(message))
            return 1
        return handler

    def call(self, target, stream, number):
        check(sd.sd_bus_call_method_async(
            self.bus, None, target.encode(), PATH.encode(), INTERFACE.encode(), b"Echo",
            self.on_reply[target], None, b"st", stream.encode(), c_uint64(number)), "call")

    def call_with_fd(self, target, stream, number, fd):
        message = c_void_p()
        check(sd.sd_bus_message_new_method_call(
            self.bus, byref(message), target.encode(), PATH.encode(), INTERFACE.encode(), b"EchoFd"), "new call")
        check(sd.sd_bus_message_append(message, b"sth", stream.encode(), c_uint64(number), c_int(fd)), "append")
        check(sd.sd_bus_call_async(self.bus, None, message, self.on_reply[target], None, c_uint64(0)), "call")
        sd.sd_bus_message_unref(message)

    def emit(self, stream, number):
        check(sd.sd_bus_emit_signal(
            self.bus, PATH.encode(), INTERFACE.encode(), b"Tick", b"st", stream.encode(), c_uint64(number)), "emit")

    def barrier_done(self, message, _userdata, _error):
        done = self.barriers.pop(0)
        if sd.sd_bus_message_get_error(message):
            self.load.error("GetId failed")
        else:
            done()
        return 1

    def barrier(self, done):
        self.barriers.append(done)
        check(sd.sd_bus_call_method_async(self.bus, None, *BUS, b"GetId", self.on_barrier, None, b""), "GetId")

    def quit(self):
        self.alive = False

    def run(self):
        interval = self.load.interval_ms / 1000
        due = time.monotonic() + interval
        poll = select.poll()
        poll.register(0, select.POLLIN)
        fd = check(sd.sd_bus_get_fd(self.bus), "fd")
        while self.alive:
            while True:
                result = sd.sd_bus_process(self.bus, None)
                if result <= 0:
                    break
            if result < 0 or not sd.sd_bus_is_open(self.bus):
                self.load.disconnected("sd_bus_process: %d" % result)
                break
            if time.monotonic() >= due:
                due += interval
                self.load.tick()
                continue
            poll.register(fd, sd.sd_bus_get_events(self.bus))
            for ready, _events in poll.poll(max(0, (due - time.monotonic()) * 1000)):
                if ready == 0:
                    self.load.readable()


Backend().run()
