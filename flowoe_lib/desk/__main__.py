"""The commands behind ``make order``, ``make work`` and ``make review``."""

import sys

try:
    # Imported here, because Ctrl-C may come while pandas is being loaded.
    from flowoe_lib.desk.commands import main

    code = main(sys.argv[1:])
except KeyboardInterrupt:
    sys.stderr.write("interrupted: no report was written\n")
    code = 130
sys.exit(code)
