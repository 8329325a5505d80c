//! The command `tidelog`.

fn main() {
    tidelog::cli::main()
}
