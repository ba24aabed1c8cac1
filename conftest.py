"""Makes every pytest run of this repository the quick one.

The notebooks and the library read FEDPROX_PROFILE. Under pytest it is "smoke" unless the caller
said otherwise: small, real training on the bundled digits, and no look at the committed records.
"""

import os

os.environ.setdefault("FEDPROX_PROFILE", "smoke")
