package mvirt

import (
	"testing"

	"github.com/vmctl/vmctl/config/importer/importertest"
)

func TestGolden(t *testing.T) { importertest.Golden(t, Convert) }

func FuzzConvert(f *testing.F) { importertest.Fuzz(f, Convert) }
