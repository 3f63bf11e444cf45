"""paddlevit comes before paddle, so that its flags are set; one thread, as the reference numbers were made."""

import paddlevit  # noqa: F401
