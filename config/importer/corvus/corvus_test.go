package corvus

import (
	"testing"

	"github.com/vmctl/vmctl/config/importer/importertest"
)

var convert = Converter{Base: "/home/corvus/VMs"}.Convert

func TestGolden(t *testing.T) { importertest.Golden(t, convert) }

func FuzzConvert(f *testing.F) { importertest.Fuzz(f, convert) }
