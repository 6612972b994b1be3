//! What a plan says follows from the facts and the request, and from nothing else.
