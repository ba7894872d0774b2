# A long-lived peer on GDBus (python3-gi).
from gi.repository import Gio, GLib

XML = """<node><interface name='%s'>
  <method name='Echo'><arg type='s' direction='in'/><arg type='t' direction='in'/>
  <arg type='s' direction='out'/><arg type='t' direction='out'/></method>
  <method name='EchoFd'><arg type='s' direction='in'/><arg type='t' direction='in'/><arg type='h' direction='in'/>
  <arg type='s' direction='out'/><arg type='t' direction='out'/></method>
  <signal name='Tick'><arg type='s'/><arg type='t'/></signal>
</interface></node>""" % INTERFACE
BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class Backend:
    def __init__(self):
        self.load = Load(self)
        self.loop = GLib.MainLoop()
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        self.bus = Gio.DBusConnection.new_for_address_sync(self.load.address, flags, None, None)
        self.bus.set_exit_on_close(False)
        self.bus.connect("closed", lambda _bus, _vanished, error: self.load.disconnected(str(error)))
        info = Gio.DBusNodeInfo.new_for_xml(XML).interfaces[0]
        self.bus.register_object(PATH, info, self.called, None, None)
        for stream in self.load.subscriptions:
            self.bus.signal_subscribe(
                None, INTERFACE, "Tick", None, stream, Gio.DBusSignalFlags.NONE, self.signalled)
        self.bus.call_sync(*BUS, "RequestName", GLib.Variant("(su)", (self.load.name, 0)), None, 0, -1, None)
        say("ready " + self.bus.get_unique_name())

    def called(self, _bus, sender, _path, _interface, member, parameters, invocation):
        stream, number = parameters.unpack()[:2]
        if member == "EchoFd":
            fds = invocation.get_message().get_unix_fd_list().steal_fds()
            self.load.received_fd(number, fds[parameters.unpack()[2]])
            for fd in fds:
                os.close(fd)
        self.load.received(stream, number, sender)
        invocation.return_value(GLib.Variant("(st)", (stream, number)))

    def signalled(self, _bus, sender, _path, _interface, _member, parameters):
        self.load.received(*parameters.unpack(), sender)

    def call_with_fd(self, target, stream, number, fd):
        def done(bus, result):
            try:
                reply, _fds = bus.call_with_unix_fd_list_finish(result)
            except GLib.Error as error:
                self.load.call_failed(target, error)
            else:
                self.load.replied(target, *reply.unpack())
        fds = Gio.UnixFDList.new()
        handle = fds.append(fd)
        self.bus.call_with_unix_fd_list(
            target, PATH, INTERFACE, "EchoFd", GLib.Variant("(sth)", (stream, number, handle)), None,
            0, TIMEOUT_S * 1000, fds, None, done)

    def call(self, target, stream, number):
        def done(bus, result):
            try:
                reply = bus.call_finish(result).unpack()
            except GLib.Error as error:
                self.load.call_failed(target, error)
            else:
                self.load.replied(target, *reply)
        self.bus.call(target, PATH, INTERFACE, "Echo", GLib.Variant("(st)", (stream, number)), None,
                      0, TIMEOUT_S * 1000, None, done)

    def emit(self, stream, number):
        self.bus.emit_signal(None, PATH, INTERFACE, "Tick", GLib.Variant("(st)", (stream, number)))

    def barrier(self, done):
        def finished(bus, result):
            try:
                bus.call_finish(result)
            except GLib.Error as error:
                self.load.error("GetId failed: %s" % error)
            else:
                done()
        self.bus.call(*BUS, "GetId", None, None, 0, TIMEOUT_S * 1000, None, finished)

    def quit(self):
        self.loop.quit()

    def run(self):
        GLib.io_add_watch(0, GLib.IO_IN | GLib.IO_HUP, lambda *_: self.load.readable())
        GLib.timeout_add(self.load.interval_ms, lambda: self.load.tick() or True)
        self.loop.run()


Backend().run()
