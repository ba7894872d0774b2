use bus_wire::Type;

#[derive(Type)]
#[bus(dictionary)]
struct Unknown {
    a: u8,
}

#[derive(Type)]
#[bus(rename_all = "PascalCase")]
struct NotADict {
    a: u8,
}

#[derive(Type)]
struct NoKey {
    #[bus(rename = "A")]
    a: u8,
}

#[derive(Type)]
#[bus(dict)]
struct Twice {
    a: u8,
    #[bus(rename = "a")]
    b: u8,
}

#[derive(Type)]
#[bus(dict, rename_all = "Title Case")]
struct Case {
    a: u8,
}

fn main() {}
