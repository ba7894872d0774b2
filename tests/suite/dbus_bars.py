"""Shared machinery of the scripts in this directory that point an installed
(distribution-packaged) test-suite at an arbitrary D-Bus message bus daemon.

Python standard library only.  A script defines a list of Case objects (one
process each, every one reporting one or more named subtests) and calls main().

Every case runs under its own supervisor process, which is a child subreaper:
whatever the test leaves behind (a daemon that forked into the background, an
activated service, the daemon of a test that aborted) is re-parented to that
supervisor and ended by pid.  Nothing else is ever signalled.
"""

import argparse
import ctypes
import fnmatch
import json
import os
import pwd
import re
import resource
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
STD_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
REFERENCE = '/usr/bin/dbus-daemon'
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


class Case:
    """One process of a suite.

    group    name of the report line this case counts towards
    argv     command
    parse    function(stdout+stderr text, stdout text, exit status or None)
             -> {subtest: 'ok' | 'fail' | 'skip'}
    want     subtests this case is expected to report when that is known up
             front: a missing one counts as failed
    user     'root', 'user' or 'any' (whoever runs the script)
    """

    def __init__(self, group, argv, parse, want=(), env=None, user='any',
                 timeout=None, nofile=None, cwd='/'):
        self.group = group
        self.argv = argv
        self.parse = parse
        self.want = tuple(want)
        self.env = env or {}
        self.user = user
        self.timeout = timeout
        self.nofile = nofile
        self.cwd = cwd
        self.label = group + (':' + '+'.join(self.want[:2]) if self.want else '')


# --------------------------------------------------------------------------
# parsers

_tap = re.compile(r'^(not ok|ok)\b\s*\d*\s*-?\s*(.*?)\s*(?:#\s*(skip|todo)\b.*)?$', re.I)


def parse_tap(everything, out, status):
    got = {}
    for line in out.splitlines():
        m = _tap.match(line)
        if m:
            name = m.group(2) or 'subtest %d' % (len(got) + 1)
            word = (m.group(3) or '').lower()
            if word == 'skip':
                got[name] = 'skip'
            elif m.group(1).lower() == 'ok':
                got[name] = 'ok'
            elif word != 'todo':
                got[name] = 'fail'
    if status not in (0, 77) and got and 'fail' not in got.values():
        # the process died after its last complete subtest
        got['(exit status)'] = 'fail'
    return got


# --------------------------------------------------------------------------
# supervisor

def _children_of(pids):
    """All live descendants of the given set of pids, by /proc."""
    parent = {}
    for entry in os.listdir('/proc'):
        if entry.isdigit():
            try:
                with open('/proc/%s/stat' % entry, 'rb') as f:
                    fields = f.read().rpartition(b')')[2].split()
            except OSError:
                continue
            if fields[0] not in (b'Z', b'X'):
                parent[int(entry)] = int(fields[1])
    found, grew = set(pids), True
    while grew:
        grew = False
        for pid, ppid in parent.items():
            if ppid in found and pid not in found:
                found.add(pid)
                grew = True
    return found - set(pids)


def _exec_child(case, env, uid, gid, out, err):
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        for s in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(s, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if case.nofile:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if hard == resource.RLIM_INFINITY or hard > case.nofile:
                resource.setrlimit(resource.RLIMIT_NOFILE, (case.nofile, case.nofile))
        null = os.open('/dev/null', os.O_RDONLY)
        o = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        e = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(null, 0)
        os.dup2(o, 1)
        os.dup2(e, 2)
        os.closerange(3, 256)
        if uid is not None:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        os.chdir(case.cwd)
        os.execvpe(case.argv[0], case.argv, env)
    except BaseException as x:      # noqa: report, never return
        os.write(2, ('cannot run %r: %s\n' % (case.argv, x)).encode())
    os._exit(126)


def _supervise(case, env, uid, gid, out, err, timeout):
    """Runs in a process of its own; exits 0..255 = status, see _ENCODE."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    stop = []
    signal.signal(signal.SIGTERM, lambda *a: stop.append(1))
    signal.signal(signal.SIGINT, lambda *a: stop.append(1))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    deadline = time.monotonic() + timeout
    me = os.getpid()
    main = os.fork()
    if main == 0:
        _exec_child(case, env, uid, gid, out, err)
    status, verdict = None, None
    killing, last_kill, rounds = False, 0.0, 0
    while True:
        try:
            pid, st = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid:
            if pid == main:
                status = os.waitstatus_to_exitcode(st)
                if verdict is None:
                    verdict = 'done'
                killing = True
            continue
        now = time.monotonic()
        if not killing and (stop or now > deadline):
            verdict, killing = 'timeout', True
        if killing and now - last_kill > 0.4:
            # first ask, then insist; each round covers new arrivals too
            for p in _children_of({me}):
                try:
                    os.kill(p, signal.SIGTERM if rounds == 0 else signal.SIGKILL)
                except OSError:
                    pass
            last_kill, rounds = now, rounds + 1
        signal.sigtimedwait([signal.SIGCHLD], 0.02 if killing else 0.05)
    code = {'timeout': 254}.get(verdict)
    if code is None:
        code = status if status is not None and 0 <= status < 128 else 253
    with open(out + '.status', 'w') as f:
        f.write('%s %s\n' % (verdict, status))
    os._exit(code)


class Runner:
    def __init__(self, args, daemon, workdir):
        self.args = args
        self.daemon = daemon
        self.work = workdir
        self.root = os.geteuid() == 0
        self.user = pwd.getpwnam(args.user) if self.root else pwd.getpwuid(os.getuid())
        self.bin = os.path.join(workdir, 'bin')
        os.makedirs(self.bin, exist_ok=True)
        os.chmod(workdir, 0o755)
        os.chmod(self.bin, 0o755)
        self.shim = self._shim(daemon)
        self.homes = {}
        self.running = {}
        self.timeouts = self.successes = 0
        self.dead = False
        self.brief = set(open(args.brief).read().split('\n')) if args.brief else ()

    def _shim(self, daemon):
        """A file called dbus-daemon that every user of the suite can execute."""
        shim = os.path.join(self.bin, 'dbus-daemon')
        if os.path.lexists(shim):
            os.unlink(shim)
        os.symlink(daemon, shim)
        if self.root and subprocess.call(
                ['setpriv', '--reuid', str(self.user.pw_uid), '--clear-groups',
                 'test', '-x', shim], stderr=subprocess.DEVNULL) != 0:
            os.unlink(shim)
            shutil.copyfile(daemon, shim)
            os.chmod(shim, 0o755)
        return shim

    def home(self, uid):
        if uid not in self.homes:
            d = os.path.join(self.work, 'home-%d' % uid)
            os.makedirs(d, mode=0o700, exist_ok=True)
            if self.root:
                os.chown(d, uid, pwd.getpwuid(uid).pw_gid)
            self.homes[uid] = d
        return self.homes[uid]

    def environ(self, case, uid):
        env = {
            'PATH': self.bin + ':' + STD_PATH,
            'HOME': self.home(uid),
            'LANG': 'C.UTF-8',
            'LOGNAME': pwd.getpwuid(uid).pw_name,
            'USER': pwd.getpwuid(uid).pw_name,
            'SHELL': '/bin/sh',
            'PYTHONDONTWRITEBYTECODE': '1',
            # nothing may reach a bus of the host by accident
            'DBUS_SESSION_BUS_ADDRESS': 'unix:path=/nonexistent/no-session-bus',
            'DBUS_SYSTEM_BUS_ADDRESS': 'unix:path=/nonexistent/no-system-bus',
        }
        for key, value in case.env.items():
            if value is None:
                env.pop(key, None)
            else:
                env[key] = value
        return env

    def subst(self, case, uid):
        table = {'@DAEMON@': self.shim, '@BIN@': self.bin, '@HOME@': self.home(uid),
                 '@WORK@': self.work}

        def s(text):
            for k, v in table.items():
                text = text.replace(k, v)
            return text
        case.argv = [s(a) for a in case.argv]
        case.env = {k: (None if v is None else s(v)) for k, v in case.env.items()}

    def start(self, n, case):
        uid = gid = None
        if case.user == 'user' and self.root:
            uid, gid = self.user.pw_uid, self.user.pw_gid
        effective = os.getuid() if uid is None else uid
        self.subst(case, effective)
        out = os.path.join(self.work, 'case-%04d.out' % n)
        err = os.path.join(self.work, 'case-%04d.err' % n)
        env = self.environ(case, effective)
        timeout = self.args.timeout or case.timeout or 30
        if case.want and all('%s:%s' % (case.group, w) in self.brief for w in case.want):
            timeout = min(timeout, 3)
        if self.dead:
            timeout = min(timeout, 2)
        elif self.hopeless():
            timeout = min(timeout, 4)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            try:
                _supervise(case, env, uid, gid, out, err, timeout)
            finally:
                os._exit(255)
        self.running[pid] = (n, case, out, err, time.monotonic())

    def preflight(self):
        """Does it come up at all?  If not, everything may fail fast."""
        argv = [self.shim, '--config-file=' + os.path.join(self.work, 'preflight.conf'),
                '--nofork', '--print-address=1']
        with open(os.path.join(self.work, 'preflight.conf'), 'w') as f:
            f.write('<busconfig><type>session</type><listen>unix:dir=%s</listen>'
                    '<policy context="default"><allow send_destination="*" eavesdrop="true"/>'
                    '<allow eavesdrop="true"/><allow own="*"/></policy></busconfig>' % self.work)
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env={'PATH': STD_PATH})
        line = b''
        while not line.endswith(b'\n') and select.select([p.stdout], [], [], 10)[0]:
            data = os.read(p.stdout.fileno(), 4096)
            if not data:
                break
            line += data
        p.terminate()
        try:
            err = p.communicate(timeout=3)[1]
        except subprocess.TimeoutExpired:
            p.kill()
            err = p.communicate()[1]
        if not line.startswith(b'unix:') or not line.endswith(b'\n'):
            print('# the daemon printed no address for: %s\n#   stdout %r, stderr %r'
                  % (' '.join(argv[1:]), line[:200], err[-300:].decode(errors='replace')))
            self.dead = True

    def hopeless(self):
        """Nothing but time-outs so far: do not spend the full time on the rest."""
        return self.timeouts >= 12 and not self.successes

    def finish(self, pid):
        n, case, out, err, began = self.running.pop(pid)
        read = lambda p: open(p, errors='replace').read() if os.path.exists(p) else ''
        so, se = read(out), read(err)
        verdict, status = 'lost', None
        text = read(out + '.status').split()
        if len(text) == 2:
            verdict = text[0]
            status = None if text[1] == 'None' else int(text[1])
        got = case.parse(so + se, so, None if verdict != 'done' else status)
        if verdict != 'done' and not case.want:
            got.setdefault('(finished in time)', 'fail')
        if case.want:
            got = {w: got.get(w, 'fail') for w in case.want}
        case.result = got
        case.verdict = verdict
        case.seconds = time.monotonic() - began
        self.timeouts += verdict == 'timeout'
        self.successes += 'ok' in got.values()
        if self.args.logs:
            os.makedirs(self.args.logs, exist_ok=True)
            name = re.sub(r'[^\w.@-]+', '_', '%04d-%s' % (n, case.label))[:120]
            with open(os.path.join(self.args.logs, name + '.log'), 'w') as f:
                f.write('argv: %r\nenv: %r\nverdict: %s, status %s, %.2f s\nresult: %s\n'
                        '--- stdout\n%s\n--- stderr\n%s\n'
                        % (case.argv, case.env, verdict, status, case.seconds,
                           json.dumps(got), so, se))

    def run(self, cases):
        queue = list(enumerate(cases))
        # long ones first, so that they do not end up alone at the end
        queue.sort(key=lambda nc: -(nc[1].timeout or 0))
        try:
            while queue or self.running:
                while queue and len(self.running) < self.args.jobs * (3 if self.dead else 1):
                    self.start(*queue.pop(0))
                pid, _ = os.wait()
                if pid in self.running:
                    self.finish(pid)
        except BaseException:
            for pid in self.running:
                try:
                    os.kill(pid, signal.SIGTERM)
                except OSError:
                    pass
            for pid in list(self.running):
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:
                    pass
            raise


def merge(cases):
    """{group: {subtest: result}}, worst result wins."""
    rank = {'skip': 0, 'ok': 1, 'fail': 2}
    table = {}
    for case in cases:
        group = table.setdefault(case.group, {})
        for name, res in case.result.items():
            if name not in group or rank[res] > rank[group[name]]:
                group[name] = res
    return table


# --------------------------------------------------------------------------
# the command

NULL_DAEMON = r'''#!/usr/bin/python3
# Accepts the command line of dbus-daemon, prints an address that nobody serves.
import os, sys, time
args, fork, out = sys.argv[1:], False, []
while args:
    a = args.pop(0)
    key, eq, val = a.partition('=')
    if key in ('--print-address', '--print-pid'):
        if not eq and args and args[0].isdigit():
            val = args.pop(0)
        out.append((int(val or 1), 'unix:path=/nonexistent/null-bus' if key == '--print-address'
                    else None))
    elif a == '--fork':
        fork = True
if fork and os.fork():
    os._exit(0)
for fd, text in out:
    os.write(fd, ((text or str(os.getpid())) + '\n').encode())
for fd in range(0, 64):
    try:
        os.close(fd)
    except OSError:
        pass
time.sleep(60)
'''

def installed(package):
    p = subprocess.run(['dpkg-query', '-W', '-f', '${Version}', package],
                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return p.stdout if p.returncode == 0 else ''


def gtest_list(binary, env=None):
    """Names of the subtests of a GLib test program."""
    e = {'PATH': STD_PATH, 'HOME': '/', 'DBUS_SESSION_BUS_ADDRESS': 'unix:path=/nonexistent'}
    e.update(env or {})
    p = subprocess.run([binary, '-l'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                       text=True, env=e, timeout=30)
    return [l for l in p.stdout.split('\n') if l.startswith('/')]


def usable_cap(n):
    try:
        for line in open('/proc/self/status'):
            if line.startswith('CapEff:'):
                return bool(int(line.split()[1], 16) >> n & 1)
    except OSError:
        pass
    return False


def main(name, packages, build, doc, default_user='nobody', optional_packages=()):
    ap = argparse.ArgumentParser(
        prog=name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('daemon', metavar='DAEMON_BINARY',
                    help='a program with the command line of dbus-daemon(1)')
    ap.add_argument('tests', metavar='TEST', nargs='*',
                    help='only these: NAME, or NAME:SUBTEST (shell patterns)')
    ap.add_argument('-j', '--jobs', type=int, default=min(8, 2 + 2 * (os.cpu_count() or 1)))
    ap.add_argument('-t', '--timeout', type=float, help='seconds for each process')
    ap.add_argument('-u', '--user', default=default_user,
                    help='ordinary user for the unprivileged tests (when run as root)')
    ap.add_argument('-l', '--logs', metavar='DIR', help='keep the output of every case')
    ap.add_argument('--brief', metavar='FILE', help='cases (a line each) that get 3 seconds')
    ap.add_argument('-v', '--verbose', action='store_true', help='name what did not pass')
    ap.add_argument('--live', action='store_true',
                    help='run the reference daemon now instead of using the recorded baseline')
    ap.add_argument('--reference', default=REFERENCE)
    ap.add_argument('--record', action='store_true',
                    help='write the baseline: DAEMON_BINARY is the reference')
    ap.add_argument('--json', metavar='FILE', help='write the results there as well')
    args = ap.parse_args()

    missing = [p for p in packages if not installed(p)]
    if missing:
        sys.exit('%s: missing packages: apt-get install %s' % (name, ' '.join(missing)))
    daemon = os.path.abspath(shutil.which(args.daemon) or args.daemon)
    if not os.access(daemon, os.X_OK) or stat.S_ISDIR(os.stat(daemon).st_mode):
        sys.exit('%s: %s is not an executable file' % (name, args.daemon))

    base_file = os.path.join(HERE, 'baselines', name + '.json')
    baseline = None
    if os.path.exists(base_file) and not (args.live or args.record):
        with open(base_file) as f:
            baseline = json.load(f)
        want = {p: installed(p) for p in packages}
        if {p: baseline['packages'].get(p) for p in packages} != want:
            print('# baseline was recorded with %s; here: %s'
                  % (baseline['packages'], want))

    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *a: sys.exit(143))

    def execute(binary):
        work = tempfile.mkdtemp(prefix='bars.')
        try:
            runner = Runner(args, binary, work)
            cases = []
            for case in build(runner):
                if case.user == 'root' and not runner.root:
                    continue
                if args.tests and not any(
                        fnmatch.fnmatchcase(case.group, t) or
                        any(fnmatch.fnmatchcase(case.group + ':' + w, t) for w in case.want)
                        for t in args.tests):
                    continue
                cases.append(case)
            runner.preflight()
            runner.run(cases)
            return merge(cases)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    if args.record:
        ref = execute(daemon)
        print('# now the same with a daemon that serves nobody, to find the subtests '
              'that need no daemon')
        args.timeout = min(args.timeout or 6, 6)
        with tempfile.TemporaryDirectory(prefix='bars.') as d:
            os.chmod(d, 0o755)
            null_daemon = os.path.join(d, 'null-daemon')
            with open(null_daemon, 'w') as f:
                f.write(NULL_DAEMON)
            os.chmod(null_daemon, 0o755)
            null = execute(null_daemon)
        needs, free = {}, {}
        for group, subs in ref.items():
            needs[group] = sorted(s for s, r in subs.items()
                                  if r == 'ok' and null.get(group, {}).get(s) != 'ok')
            free[group] = sorted(s for s, r in subs.items()
                                 if r == 'ok' and null.get(group, {}).get(s) == 'ok')
        version = subprocess.run([daemon, '--version'], stdout=subprocess.PIPE,
                                 text=True).stdout.split('\n')[0]
        os.makedirs(os.path.dirname(base_file), exist_ok=True)
        with open(base_file, 'w') as f:
            json.dump({'reference': version,
                       'packages': {p: installed(p) for p in
                                    list(packages) + list(optional_packages)},
                       'root': os.geteuid() == 0,
                       'cap_sys_resource': usable_cap(24),
                       'pass': needs,
                       'pass_without_daemon': {g: s for g, s in free.items() if s},
                       'skip': {g: sorted(s for s, r in t.items() if r == 'skip')
                                for g, t in ref.items()
                                if 'skip' in t.values()},
                       'fail': {g: sorted(s for s, r in t.items() if r == 'fail')
                                for g, t in ref.items() if 'fail' in t.values()}},
                      f, indent=1, sort_keys=True)
            f.write('\n')
        for group, subs in ref.items():
            print('%s ok=%d fail=%d skip=%d (need no daemon: %d)' % (
                group, *(list(subs.values()).count(r) for r in ('ok', 'fail', 'skip')),
                len(free[group])))
        print('recorded %d subtests that need a daemon, in %.0f s'
              % (sum(map(len, needs.values())), time.monotonic() - began))
        return 0

    if baseline:
        refpass = {g: set(s) for g, s in baseline['pass'].items()}
        free = {g: set(s) for g, s in baseline['pass_without_daemon'].items()}
    else:
        ref = execute(args.reference)
        refpass = {g: {s for s, r in t.items() if r == 'ok'} for g, t in ref.items()}
        free = {}
    got = execute(daemon)

    passed = total = extra = skipped = 0
    for group in got:
        subs = {s: r for s, r in got[group].items() if s not in free.get(group, ())}
        known = refpass.get(group, set())
        if args.tests and not any(fnmatch.fnmatchcase(group, t) for t in args.tests):
            known = {s for s in known if any(
                fnmatch.fnmatchcase(group + ':' + s, t) for t in args.tests)}
        # what the reference passes and did not even report counts as failed
        for s in known - set(subs):
            subs[s] = 'fail'
        n = {r: list(subs.values()).count(r) for r in ('ok', 'fail', 'skip')}
        total += len(known)
        passed += sum(1 for s in known if subs[s] == 'ok')
        skipped += sum(1 for s in known if subs[s] == 'skip')
        extra += sum(1 for s, r in subs.items() if r == 'ok' and s not in known)
        if not subs:
            continue
        print('%s ok=%d fail=%d skip=%d (reference ok=%d)'
              % (group, n['ok'], n['fail'], n['skip'], len(known)))
        if args.verbose:
            for s in sorted(known):
                if subs[s] != 'ok':
                    print('    %s %s' % (subs[s], s))
            for s in sorted(set(subs) - known):
                if subs[s] == 'fail':
                    print('    fail (reference does not pass it here) %s' % s)
    absent = sorted(set(refpass) - set(got)) if not args.tests else []
    for group in absent:
        if refpass[group]:
            print('%s not run here (reference ok=%d, not counted)' % (group, len(refpass[group])))
    if extra:
        print('# %d more passed that the reference baseline does not have' % extra)
    if skipped:
        print('# %d that the reference passed were skipped: does this machine lack something?'
              % skipped)
    print('# %.0f s' % (time.monotonic() - began))
    print('passed %d of %d reference-passing subtests' % (passed, total))
    if args.json:
        with open(args.json, 'w') as f:
            json.dump({'daemon': daemon, 'passed': passed, 'of': total, 'results': got},
                      f, indent=1, sort_keys=True)
    return 0 if passed == total and total else 1
