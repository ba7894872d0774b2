use bus_wire::Type;

#[derive(Type)]
struct Nothing;

#[derive(Type)]
enum Fields {
    A(u8),
}

#[derive(Type)]
#[repr(u128)]
enum Huge {
    A,
}

#[derive(Type)]
enum Never {}

#[derive(Type)]
#[bus(dict)]
struct NoNames(u8);

fn main() {}
