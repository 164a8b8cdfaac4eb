//! Why a layer or an upper cannot be opened.
