//! What is written is believed, what is torn is not.
