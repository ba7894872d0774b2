# A long-lived peer on libdbus (python3-dbus).
import dbus
import dbus.bus
import dbus.mainloop.glib
import dbus.service
from gi.repository import GLib


class Service(dbus.service.Object):
    load = None

    @dbus.service.method(INTERFACE, in_signature="st", out_signature="st", sender_keyword="sender")
    def Echo(self, stream, number, sender=None):
        self.load.received(stream, number, sender)
        return stream, number

    @dbus.service.method(INTERFACE, in_signature="sth", out_signature="st", sender_keyword="sender")
    def EchoFd(self, stream, number, fd, sender=None):
        fd = fd.take()
        self.load.received_fd(number, fd)
        os.close(fd)
        return self.Echo(stream, number, sender)

    @dbus.service.signal(INTERFACE, signature="st")
    def Tick(self, stream, number):
        pass


class Backend:
    def __init__(self):
        self.load = Load(self)
        self.loop = GLib.MainLoop()
        dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
        self.bus = dbus.bus.BusConnection(self.load.address)
        self.bus.set_exit_on_disconnect(False)
        self.bus.call_on_disconnection(lambda _: self.load.disconnected())
        self.service = Service(self.bus, PATH)
        self.service.load = self.load
        for stream in self.load.subscriptions:
            self.bus.add_signal_receiver(
                lambda s, n, sender=None: self.load.received(s, n, sender),
                "Tick", INTERFACE, arg0=stream, sender_keyword="sender")
        self.bus.request_name(self.load.name)
        say("ready " + self.bus.get_unique_name())

    def call(self, target, stream, number):
        self.bus.call_async(
            target, PATH, INTERFACE, "Echo", "st", (stream, dbus.UInt64(number)),
            lambda s, n: self.load.replied(target, s, n),
            lambda e: self.load.call_failed(target, e), timeout=TIMEOUT_S)

    def call_with_fd(self, target, stream, number, fd):
        self.bus.call_async(
            target, PATH, INTERFACE, "EchoFd", "sth", (stream, dbus.UInt64(number), dbus.types.UnixFd(fd)),
            lambda s, n: self.load.replied(target, s, n),
            lambda e: self.load.call_failed(target, e), timeout=TIMEOUT_S)

    def emit(self, stream, number):
        self.service.Tick(stream, dbus.UInt64(number))

    def barrier(self, done):
        self.bus.call_async(
            "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetId", "", (),
            lambda _: done(), lambda e: self.load.error("GetId failed: %s" % e), timeout=TIMEOUT_S)

    def quit(self):
        self.loop.quit()

    def run(self):
        GLib.io_add_watch(0, GLib.IO_IN | GLib.IO_HUP, lambda *_: self.load.readable())
        GLib.timeout_add(self.load.interval_ms, lambda: self.load.tick() or True)
        self.loop.run()


Backend().run()
