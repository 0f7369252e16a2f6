"""The demo in a browser: several models side by side on one image, with heat maps and metadata effects.

python examples/app.py    # or --checkpoints RUN RUN …

Without options it shows the models of examples/checkpoints, as `make app` does.
`ham10000-space` makes a Hugging Face Space of the same page.
"""

import sys

from ham10000.hub_upload.app import main

if __name__ == "__main__":
    sys.exit(main())
