"""The commands behind ``make order``, ``make work`` and ``make review``."""

import sys

words = sys.argv[1:]
try:
    # Imported here, because Ctrl-C may come while torch is being loaded.
    if words[:1] in (["work"], ["review"]):
        from flowoe_lib.desk.commands import main
    else:
        from flowoe_lib.desk.report import main

    code = main(words)
except KeyboardInterrupt:
    sys.stderr.write("interrupted: no report was written\n")
    code = 130
sys.exit(code)
