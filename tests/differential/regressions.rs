//! What once failed, shrunk, each by the name of what was wrong.
