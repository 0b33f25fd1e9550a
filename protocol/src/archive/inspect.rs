//! What an executable asks of a host.
//!
//! ELF is read as the loader reads it: by program headers and the dynamic segment, not by section
//! headers, which the loader ignores and a hostile file may fill with something else.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _};
use object::read::macho::MachHeader;
use object::read::pe::{ImageNtHeaders, PeFile};
use object::read::{FileKind, ReadCache, ReadRef, StringTable};
use object::{LittleEndian as LE, elf, macho, pe};

use super::{Executable, Format, NEEDED_MAX, is_library_name};
use crate::hash::Blake3;

/// Tables of one executable that are read into memory.
const TABLES_BYTES_MAX: u64 = 64 << 20;
/// Load commands, program headers or symbol versions that are looked at.
const RECORDS_MAX: usize = 64 * 1024;

/// Why a file is not taken as an executable.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file could not be read.
    #[error("cannot read the executable: {0}")]
    Read(#[from] io::Error),
    /// Neither ELF, nor Mach-O for one processor, nor PE.
    #[error("neither an ELF, a Mach-O nor a PE executable")]
    Format,
    /// An object file, a core dump or the like.
    #[error("{0} file that is not an executable")]
    Kind(&'static str),
    /// A processor that qk has no name for.
    #[error("machine number {0:#x} is not known")]
    Machine(u32),
    /// Its tables contradict themselves.
    #[error("malformed executable: {0}")]
    Malformed(String),
    /// More than what is looked at.
    #[error("more {what} than the {max} that are looked at")]
    TooMany {
        /// Of what there are too many.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// A library whose name cannot be shown or looked up.
    #[error("needs a library with the name {0:?}")]
    Library(String),
    /// A symbol version of glibc that belongs to no release.
    #[error("needs {0:?} of glibc, which is no release")]
    Glibc(String),
}

impl From<object::read::Error> for InspectError {
    fn from(error: object::read::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// What is found in the tables of an executable.
struct Asks {
    format: Format,
    machine: &'static str,
    glibc: Option<(u32, u32)>,
    needed: BTreeSet<String>,
}

/// Reads a whole executable: its size, its BLAKE3, and what it asks of a host.
///
/// # Errors
/// When it cannot be read, is of another format, or its tables make no sense. Memory is bounded
/// whatever the file says.
pub fn inspect<R: Read + Seek>(mut read: R) -> Result<Executable, InspectError> {
    read.seek(SeekFrom::Start(0))?;
    let mut hasher = blake3::Hasher::new();
    let size = io::copy(&mut read, &mut hasher)?;
    let data = Bounded {
        cache: ReadCache::new(read),
        left: Cell::new(TABLES_BYTES_MAX),
    };
    let asks = asks(&data)?;
    Ok(Executable {
        format: asks.format,
        size,
        blake3: Blake3(*hasher.finalize().as_bytes()),
        machine: asks.machine.to_owned(),
        glibc: asks.glibc.map(|(major, minor)| format!("{major}.{minor}")),
        needed: asks.needed,
    })
}

fn asks<R: Read + Seek>(data: &Bounded<R>) -> Result<Asks, InspectError> {
    match FileKind::parse(data).map_err(|_| InspectError::Format)? {
        FileKind::Elf32 => elf::<elf::FileHeader32<object::Endianness>, _>(data),
        FileKind::Elf64 => elf::<elf::FileHeader64<object::Endianness>, _>(data),
        FileKind::MachO32 => macho::<macho::MachHeader32<object::Endianness>, _>(data),
        FileKind::MachO64 => macho::<macho::MachHeader64<object::Endianness>, _>(data),
        FileKind::Pe32 => pe::<pe::ImageNtHeaders32, _>(data),
        FileKind::Pe64 => pe::<pe::ImageNtHeaders64, _>(data),
        // An enum of another crate that grows; fat Mach-O is not what cargo builds.
        _ => Err(InspectError::Format),
    }
}

/// Reads tables on demand, and only so many bytes: a file can say that a table is as large as the
/// file itself, and say it often.
#[derive(Debug)]
struct Bounded<R: Read + Seek> {
    cache: ReadCache<R>,
    left: Cell<u64>,
}

impl<'a, R: Read + Seek> ReadRef<'a> for &'a Bounded<R> {
    fn len(self) -> Result<u64, ()> {
        (&self.cache).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        self.left.set(self.left.get().checked_sub(size).ok_or(())?);
        (&self.cache).read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        // The cache looks at no more than 4 KiB for the delimiter.
        self.left.set(self.left.get().checked_sub(4096).ok_or(())?);
        (&self.cache).read_bytes_at_until(range, delimiter)
    }
}

fn add_library(needed: &mut BTreeSet<String>, name: &[u8]) -> Result<(), InspectError> {
    let name = String::from_utf8_lossy(name).into_owned();
    if !is_library_name(&name) {
        return Err(InspectError::Library(name.chars().take(80).collect()));
    }
    needed.insert(name);
    if needed.len() > NEEDED_MAX {
        return Err(InspectError::TooMany {
            what: "libraries",
            max: NEEDED_MAX,
        });
    }
    Ok(())
}

fn count(records: &mut usize) -> Result<(), InspectError> {
    *records += 1;
    if *records > RECORDS_MAX {
        return Err(InspectError::TooMany {
            what: "records",
            max: RECORDS_MAX,
        });
    }
    Ok(())
}

fn malformed(what: &str) -> InspectError {
    InspectError::Malformed(what.to_owned())
}

/// Where the loader would find what it needs, as offsets in the file.
#[derive(Default)]
struct Dynamic {
    strings: Option<u64>,
    strings_size: u64,
    versions: Option<u64>,
    needed: Vec<u64>,
}

fn elf<Elf: FileHeader<Endian = object::Endianness>, R: Read + Seek>(
    data: &Bounded<R>,
) -> Result<Asks, InspectError> {
    let header = Elf::parse(data)?;
    let endian = header.endian()?;
    if !matches!(header.e_type(endian), elf::ET_EXEC | elf::ET_DYN) {
        return Err(InspectError::Kind("an ELF"));
    }
    let machine = elf_machine(
        header.e_machine(endian).0,
        header.is_type_64(),
        header.is_little_endian(),
    )?;
    let segments = header.program_headers(endian, data)?;
    let mut asks = Asks {
        format: Format::Elf,
        machine,
        glibc: None,
        needed: BTreeSet::new(),
    };
    let Some(dynamic) = elf_dynamic::<Elf, R>(endian, segments, data)? else {
        return Ok(asks);
    };
    let strings = match dynamic.strings {
        Some(start) => StringTable::new(data, start, start.saturating_add(dynamic.strings_size)),
        None => StringTable::default(),
    };
    for offset in dynamic.needed {
        add_library(&mut asks.needed, string(&strings, offset)?)?;
    }
    if let Some(versions) = dynamic.versions {
        asks.glibc = elf_glibc(endian, versions, &strings, data)?;
    }
    Ok(asks)
}

fn string<'a, R: ReadRef<'a>>(
    strings: &StringTable<'a, R>,
    offset: u64,
) -> Result<&'a [u8], InspectError> {
    u32::try_from(offset)
        .ok()
        .and_then(|offset| strings.get(offset).ok())
        .ok_or_else(|| malformed("a string is outside of the string table"))
}

fn elf_dynamic<Elf: FileHeader<Endian = object::Endianness>, R: Read + Seek>(
    endian: object::Endianness,
    segments: &[Elf::ProgramHeader],
    data: &Bounded<R>,
) -> Result<Option<Dynamic>, InspectError> {
    let Some(segment) = segments
        .iter()
        .find(|segment| segment.p_type(endian) == elf::PT_DYNAMIC)
    else {
        return Ok(None);
    };
    let mut dynamic = Dynamic::default();
    for entry in segment.dynamic(endian, data)?.unwrap_or_default() {
        let value: u64 = entry.d_val(endian).into();
        match entry.d_tag(endian) {
            elf::DT_NULL => break,
            elf::DT_STRTAB => dynamic.strings = Some(offset::<Elf>(endian, segments, value)?),
            elf::DT_STRSZ => dynamic.strings_size = value,
            elf::DT_VERNEED => dynamic.versions = Some(offset::<Elf>(endian, segments, value)?),
            elf::DT_NEEDED => dynamic.needed.push(value),
            _ => {}
        }
        if dynamic.needed.len() > NEEDED_MAX {
            return Err(InspectError::TooMany {
                what: "libraries",
                max: NEEDED_MAX,
            });
        }
    }
    Ok(Some(dynamic))
}

/// Where in the file the byte is that gets loaded to `address`.
fn offset<Elf: FileHeader<Endian = object::Endianness>>(
    endian: object::Endianness,
    segments: &[Elf::ProgramHeader],
    address: u64,
) -> Result<u64, InspectError> {
    segments
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
        .find_map(|segment| {
            let start: u64 = segment.p_vaddr(endian).into();
            let size: u64 = segment.p_filesz(endian).into();
            let inside = address.checked_sub(start).filter(|inside| *inside < size)?;
            let file: u64 = segment.p_offset(endian).into();
            file.checked_add(inside)
        })
        .ok_or_else(|| malformed("a table is in no loaded segment"))
}

/// Follows the records of needed versions as the loader does, by their `next` offsets until 0.
fn elf_glibc<'a, R: Read + Seek>(
    endian: object::Endianness,
    start: u64,
    strings: &StringTable<'a, &'a Bounded<R>>,
    data: &'a Bounded<R>,
) -> Result<Option<(u32, u32)>, InspectError> {
    let outside = |()| malformed("needed versions are outside of the file");
    let next = |at: u64, by: u32| at.checked_add(u64::from(by)).filter(|_| by != 0);
    let (mut highest, mut records) = (None, 0);
    let mut library = Some(start);
    while let Some(at) = library {
        count(&mut records)?;
        let need: &elf::Verneed<_> = data.read_at(at).map_err(outside)?;
        let mut version = next(at, need.vn_aux.get(endian));
        while let Some(at) = version {
            count(&mut records)?;
            let aux: &elf::Vernaux<_> = data.read_at(at).map_err(outside)?;
            let name = string(strings, u64::from(aux.vna_name.get(endian)))?;
            highest = highest.max(glibc_release(name)?);
            version = next(at, aux.vna_next.get(endian));
        }
        library = next(at, need.vn_next.get(endian));
    }
    Ok(highest)
}

/// The release of glibc that first has a symbol version; `None` for versions of other libraries.
///
/// Only major and minor number count: the third of `GLIBC_2.2.5` tells releases of 2002 apart.
fn glibc_release(version: &[u8]) -> Result<Option<(u32, u32)>, InspectError> {
    let Some(release) = version.strip_prefix(b"GLIBC_") else {
        return Ok(None);
    };
    // Markers for features of the loader carry a name instead of a number.
    if release == b"ABI_DT_RELR" {
        return Ok(Some((2, 36)));
    }
    let parse = || {
        let mut numbers = std::str::from_utf8(release)
            .ok()?
            .split('.')
            .map(|number| number.parse::<u32>().ok());
        let pair = (numbers.next()??, numbers.next()??);
        numbers.all(|number| number.is_some()).then_some(pair)
    };
    match parse() {
        Some(pair) => Ok(Some(pair)),
        None => {
            let name = String::from_utf8_lossy(version);
            Err(InspectError::Glibc(name.chars().take(80).collect()))
        }
    }
}

fn elf_machine(number: u16, is_64: bool, little: bool) -> Result<&'static str, InspectError> {
    Ok(match (elf::Machine(number), is_64, little) {
        (elf::EM_X86_64, true, true) => "x86_64",
        (elf::EM_386, false, true) => "x86",
        (elf::EM_AARCH64, true, true) => "aarch64",
        (elf::EM_ARM, false, true) => "arm",
        (elf::EM_RISCV, true, true) => "riscv64",
        (elf::EM_RISCV, false, true) => "riscv32",
        (elf::EM_LOONGARCH, true, true) => "loongarch64",
        (elf::EM_PPC64, true, true) => "powerpc64le",
        (elf::EM_PPC64, true, false) => "powerpc64",
        (elf::EM_PPC, false, false) => "powerpc",
        (elf::EM_S390, true, false) => "s390x",
        (elf::EM_SPARCV9, true, false) => "sparc64",
        _ => return Err(InspectError::Machine(u32::from(number))),
    })
}

fn macho<Mach: MachHeader<Endian = object::Endianness>, R: Read + Seek>(
    data: &Bounded<R>,
) -> Result<Asks, InspectError> {
    let header = Mach::parse(data, 0)?;
    let endian = header.endian()?;
    if header.filetype(endian) != macho::MH_EXECUTE {
        return Err(InspectError::Kind("a Mach-O"));
    }
    let machine = match header.cputype(endian) {
        macho::CPU_TYPE_X86_64 => "x86_64",
        macho::CPU_TYPE_ARM64 => "aarch64",
        other => return Err(InspectError::Machine(other.0)),
    };
    let mut needed = BTreeSet::new();
    let mut records = 0;
    let mut commands = header.load_commands(endian, data, 0)?;
    while let Some(command) = commands.next()? {
        count(&mut records)?;
        if let Some(dylib) = command.dylib()? {
            add_library(&mut needed, command.string(endian, dylib.dylib.name)?)?;
        }
    }
    Ok(Asks {
        format: Format::MachO,
        machine,
        glibc: None,
        needed,
    })
}

fn pe<Pe: ImageNtHeaders, R: Read + Seek>(data: &Bounded<R>) -> Result<Asks, InspectError> {
    let file = PeFile::<Pe, _>::parse(data)?;
    let header = file.nt_headers().file_header();
    let is_dll = header.characteristics.get(LE).contains(pe::IMAGE_FILE_DLL);
    if is_dll {
        return Err(InspectError::Kind("a PE"));
    }
    let machine = match header.machine.get(LE) {
        pe::IMAGE_FILE_MACHINE_AMD64 => "x86_64",
        pe::IMAGE_FILE_MACHINE_I386 => "x86",
        pe::IMAGE_FILE_MACHINE_ARM64 => "aarch64",
        other => return Err(InspectError::Machine(u32::from(other.0))),
    };
    let mut needed = BTreeSet::new();
    let mut records = 0;
    if let Some(table) = file.import_table()? {
        let mut descriptors = table.descriptors()?;
        while let Some(descriptor) = descriptors.next()? {
            count(&mut records)?;
            add_library(&mut needed, table.name(descriptor.name.get(LE))?)?;
        }
    }
    Ok(Asks {
        format: Format::Pe,
        machine,
        glibc: None,
        needed,
    })
}
