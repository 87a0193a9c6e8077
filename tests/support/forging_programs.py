"""Programs that want to pass without reaching their last line, which fails.

`TAIL`, which fails, is put behind each of FORGING. Those of REACHING only come to where raw memory
can be read, and pass if they do.
"""

# Not `assert False`: the compiler would leave out what comes after it.
TAIL = "\nassert len('x') == 2\nend = 1\n"

_WRITE = """
import os
def claim(word):
    os.write(3, word)
    os._exit(0)
"""

FORGING = {
    "a local of a frame below": _WRITE
    + """
import sys
frame = sys._getframe()
while frame:
    for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
        for found in value.values() if type(value) is dict else [value]:
            if type(found) is bytes and len(found) == 16:
                claim(found)
    frame = frame.f_back
""",
    "what the collector knows": _WRITE
    + """
import gc
for thing in gc.get_objects():
    for cell in gc.get_referents(thing):
        if type(cell).__name__ == 'cell' and type(found := cell.cell_contents) is bytes:
            claim(found)
""",
    "who refers to write": _WRITE
    + """
import gc, posix
for one in gc.get_referrers(posix.write, posix._exit):
    for two in gc.get_referrers(one):
        for found in getattr(two, '__closure__', None) or ():
            if type(found.cell_contents) is bytes:
                claim(found.cell_contents)
""",
    "a frame of the refusal": _WRITE
    + """
import sys
try:
    sys.settrace(print)
except BaseException as error:
    trace = error.__traceback__
    while trace:
        frame = trace.tb_frame
        while frame:
            for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
                if type(value) is bytes and len(value) == 16:
                    claim(value)
                if callable(value) and value.__name__ == 'finish':
                    value(None)
            frame = frame.f_back
        trace = trace.tb_next
""",
    "a jump over the tests": """
import sys
def jump(frame, event, argument):
    if event == 'line' and frame.f_lineno == 9:
        frame.f_lineno = 10
    return jump
sys._getframe().f_trace = jump
sys.settrace(jump)""",
    "the main module": """
import sys
for name, value in vars(sys.modules['__main__']).items():
    if callable(value):
        try: value(None)
        except TypeError: pass
""",
    "a change of the hook": """
import sys
hook = getattr(sys.modules['__main__'], 'refuser', None)
hook.__code__ = (lambda *_: None).__code__
""",
    "leaving without an exit": """
import os, builtins
os._exit = builtins.exit = lambda *_: None
raise SystemExit(0)
""",
    "exit at exit": """
import atexit, os
atexit.register(os._exit, 0)
raise KeyboardInterrupt
""",
    "a thread that leaves": """
import os, threading
threading.Thread(target=os._exit, args=(0,)).start()
import time; time.sleep(60)
""",
    "a signal that leaves": """
import os, signal
signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.01)
while True: pass
""",
    "an exception that is none": """
import builtins, sys
builtins.AssertionError = builtins.BaseException = builtins.Exception = type('X', (), {})
sys.excepthook = print
assert False
""",
    "the runner's own words": "import os; os.write(3, b'no:forged'); os._exit(1)",
    "a verdict on the way out": """
import marshal, os
verdict = marshal.dumps({'finished': True, 'status': 0, 'refused': ''})
for number in range(64):
    try: os.write(number, verdict)
    except OSError: pass
os._exit(0)
""",
    "the job again": _WRITE
    + """
import marshal, os
for number in range(64):
    try: claim(marshal.loads(os.read(number, 65536))[1])
    except (OSError, ValueError, EOFError, TypeError, IndexError): pass
raise SystemExit
""",
}

REACHING = {
    "ctypes": "import ctypes; ctypes.Union",
    "memory through an import by its file": """
import importlib.machinery, importlib.util, sysconfig
name = 'package._ctypes'
path = sysconfig.get_path('platstdlib') + '/lib-dynload/_ctypes' + sysconfig.get_config_var(
    'EXT_SUFFIX')
loader = importlib.machinery.ExtensionFileLoader(name, path)
module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
""",
    "a name that lies": """
import importlib.machinery, importlib.util, sysconfig
class Name(str):
    def rpartition(self, _): return '', '', 'math'
    def __hash__(self): return hash('math')
    def __eq__(self, other): return other == 'math'
path = sysconfig.get_path('platstdlib') + '/lib-dynload/_ctypes' + sysconfig.get_config_var(
    'EXT_SUFFIX')
loader = importlib.machinery.ExtensionFileLoader('_ctypes', path)
spec = importlib.machinery.ModuleSpec(Name('_ctypes'), loader, origin=path)
import _imp
_imp.create_dynamic(spec)
""",
    "classes of ctypes": """
def below(kind):
    for found in type.__subclasses__(kind):
        yield found
        yield from below(found)
next(kind for kind in below(object) if kind.__name__ == 'Union' and kind.__module__ == '_ctypes')
""",
    "other builtins for the hook": """
import builtins
builtins.str = builtins.type = builtins.frozenset = builtins.ImportError = print
import _ctypes
""",
    "a second interpreter": """
try:
    import _interpreters
except ImportError:
    import _xxsubinterpreters as _interpreters
_interpreters.create()
""",
}
