//! The command `tidelog`.

fn main() -> std::process::ExitCode {
    tidelog::cli::main()
}
