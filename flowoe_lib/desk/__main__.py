"""The command behind ``make order``."""

import sys

try:
    # Imported here, because Ctrl-C may come while torch is being loaded.
    from flowoe_lib.desk.report import main

    code = main()
except KeyboardInterrupt:
    sys.stderr.write("interrupted: no report was written\n")
    code = 130
sys.exit(code)
