//! Tests of the table's parts together.
