//! A saved plan is read back as it was, or refused with its path.
